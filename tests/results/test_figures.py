"""Figures show what their data say, the data say what the records say, and both are the same every time."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.analysis.groups import outcomes
from results.analysis.stats import paired_bootstrap
from results.figures.data import FigureData, data_csv, figure_data
from results.figures.files import DRAW, drawings, drawn, save
from results.figures.style import COLOURS, adaptive, floor_of, spread
from results.store.folder import RunFolder
from results.store.records import LayerResult, Record, RefinementPoint, RefinementResult
from tests.fixtures.records import Correct, make_cell, make_folder, make_key


def control(method: str, digits: float, **changes: Any) -> tuple[Record, Correct]:
    full = {"kind": "control", "rounding": None, "target": None, "bits": None, "bits_per_weight": None}
    return make_cell(method, {"digits": digits}, **{"method": method, **full, "axes": {}, **changes})


def method(name: str, digits: float, anchor: float = 0.001, **changes: Any) -> tuple[Record, Correct]:
    deviations: dict[str, Any] = {"expert_deviation": 3.0, "merging_deviation": 2.0}
    layers = [
        LayerResult(
            name=f"block.{index}",
            rows=8,
            columns=4,
            objective=0.1,
            quantisation_deviation=0.5 + index,
            **deviations,
        )
        for index in range(3)
    ]
    fields = {"method": name, "layers": layers, "axes": {"anchor": anchor}, **changes}
    return make_cell(f"{name}{digits}{anchor}", {"digits": digits}, **fields)


def study(path: Path, **manifest: Any) -> RunFolder:
    return make_folder(
        path,
        control("zero-shot", 0.3, merge=None),
        control("experts", 0.9, merge=None),
        control("merged", 0.5),
        control("epmq-fp", 0.7),
        method("gptq", 0.5),
        method("gptq", 0.4, bits=3),
        method("epmq", 0.6, target="expert", rounding="gptq"),
        method("epmq-no-anchor", 0.2, anchor=0.0, target="expert", rounding="gptq"),
        **manifest,
    )


def by_name(folder: RunFolder) -> dict[str, FigureData]:
    return {data.name: data for data in figure_data(Analysis(folder))}


def test_a_study_fills_every_figure(tmp_path: Path) -> None:
    assert list(by_name(study(tmp_path))) == [
        *("accuracy-bits", "recovery", "tasks-ties-4-bit", "tasks-ties-3-bit"),
        *("deviations-ties-4-bit", "deviations-ties-3-bit", "anchor"),
    ]


def refined(path: Path) -> RunFolder:
    """Two rows that were refined, one of them from a start that it shares with a row in full precision."""

    def curve(best: int, *losses: float) -> RefinementResult:
        points = tuple(RefinementPoint(step=10 * i, held_out=loss) for i, loss in enumerate(losses))
        return RefinementResult(points=points, best=best, seconds=5.0)

    start, after = curve(20, 0.9, 0.5, 0.3), curve(10, 0.4, 0.3, 0.35)
    return make_folder(
        path,
        control("experts", 0.9, merge=None),
        control("merged", 0.5),
        method("gptq", 0.5, seconds={"calibrate": 1.0, "evaluate": 90.0}),
        method("slow", 0.45, seconds={"calibrate": 3.0}),
        control("distilled", 0.7, refinements={"before": start}, seconds={"refine": 5.0}),
        method(
            "distilled-qat",
            0.8,
            refinements={"before": start, "after": after},
            seconds={"refine": 9.0, "calibrate": 1.0},
        ),
    )


def test_what_accuracy_costs_has_a_frontier_of_what_nothing_cheaper_reaches(tmp_path: Path) -> None:
    points = by_name(refined(tmp_path))["pareto-4-bit"].points
    found = [(point["label"], point["seconds"], point["frontier"]) for point in points]
    assert found == [("gptq", 1.0, 1), ("slow", 3.0, 0), ("distilled", 5.0, 1), ("distilled-qat", 10.0, 1)]


def test_curves_show_held_out_losses_and_a_shared_start_once(tmp_path: Path) -> None:
    points = by_name(refined(tmp_path))["curves"].points
    series = [(point["label"], point["step"], point["held_out"], point["kept"]) for point in points]
    assert series == [
        *(("distilled", 0, 0.9, 0), ("distilled", 10, 0.5, 0), ("distilled", 20, 0.3, 1)),
        *(("distilled-qat, 4-bit", 0, 0.4, 0), ("distilled-qat, 4-bit", 10, 0.3, 1)),
        ("distilled-qat, 4-bit", 20, 0.35, 0),
    ]


def test_rows_that_were_not_refined_have_no_figure_of_effort(tmp_path: Path) -> None:
    assert not {"pareto-4-bit", "curves"} & by_name(study(tmp_path)).keys()


@pytest.mark.parametrize("name", ["pareto-4-bit", "curves"])
def test_figures_of_effort_are_drawn(tmp_path: Path, name: str) -> None:
    data = by_name(refined(tmp_path))[name]
    picture = drawn(data, "svg").decode()
    assert all(str(point["label"]) in picture for point in data.points)
    assert drawn(data, "svg").decode() == picture


def test_accuracy_has_normal_intervals_of_the_standard_error(tmp_path: Path) -> None:
    points = by_name(study(tmp_path))["accuracy-bits"].points
    point = next(point for point in points if point["label"] == "epmq")
    assert (point["merge"], point["bits"], point["role"]) == ("ties", 4, "expert")
    error = 1.959964 * (0.6 * 0.4 / 200) ** 0.5
    assert [point["low"], point["high"]] == pytest.approx([0.6 - error, 0.6 + error])


def test_recovery_has_the_paired_interval_to_the_merged_model(tmp_path: Path) -> None:
    folder = study(tmp_path)
    points = by_name(folder)["recovery"].points
    point = next(point for point in points if point["label"] == "epmq")
    assert point["recovery"] == pytest.approx(0.25)
    epmq, merged = (outcomes(folder.samples(make_key(name))) for name in ("epmq0.60.001", "merged"))
    _, low, high, _ = paired_bootstrap(epmq, merged)
    assert [point["low"], point["high"]] == pytest.approx([low / 0.4, high / 0.4])
    assert "merged" not in {point["label"] for point in points}


def test_deviations_are_multiples_of_the_layers_merging_deviation(tmp_path: Path) -> None:
    points = by_name(study(tmp_path))["deviations-ties-4-bit"].points
    gptq = [point for point in points if point["label"] == "gptq"]
    assert [point["layer"] for point in gptq] == ["block.0", "block.1", "block.2"]
    assert [point["quantisation"] for point in gptq] == [0.25, 0.75, 1.25]
    assert [point["expert_relative"] for point in gptq] == [1.5] * 3


def test_cells_that_differ_in_the_anchor_alone_are_one_line(tmp_path: Path) -> None:
    points = by_name(study(tmp_path))["anchor"].points
    assert [point["label"] for point in points] == ["epmq, 4 bits"] * 2
    assert [point["anchor"] for point in points] == [0.0, 0.001]
    assert [point["average"] for point in points] == pytest.approx([0.2, 0.6])


def test_the_label_free_search_is_a_figure_that_says_it_is_no_result(tmp_path: Path) -> None:
    folder = study(tmp_path)
    trial = {"merge": "ties", "bits": 4, "target": "expert", "mixing": 0.5, "distance": 0.7, "layers": "*"}
    trials = [{**trial, "anchor": anchor} for anchor in (0.0, 0.1)] + [
        {**trial, "target": "merged", "anchor": 1.0},
        {**trial, "anchor": 0.3, "patch_weight": 0.0},
    ]
    (tmp_path / "tuning.json").write_text(json.dumps(trials))
    data = by_name(folder)["anchor-search"]
    assert [point["anchor"] for point in data.points] == [0.0, 0.1]
    assert "not a result" in data.caption


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{}", "tuning.json: the file: Input should be a valid array"),
        ('[{"merge": "ties"}]', "tuning.json: 0.bits: Field required; write it again or remove it"),
        ("[", "tuning.json: the file: Invalid JSON"),
        (
            '[{"merge":"t","bits":4,"target":"expert","mixing":0,"anchor":-1,"distance":1}]',
            "0.anchor: Input should",
        ),
    ],
)
def test_a_damaged_search_is_an_error(tmp_path: Path, text: str, complaint: str) -> None:
    folder = study(tmp_path)
    (tmp_path / "tuning.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(complaint)):
        figure_data(Analysis(folder))


def test_a_search_is_not_read_through_a_link(tmp_path: Path) -> None:
    folder = study(tmp_path / "run")
    (tmp_path / "elsewhere.json").write_text("[]")
    (tmp_path / "run" / "tuning.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match="it is a link"):
        figure_data(Analysis(folder))


def test_a_rehearsal_says_so_in_every_caption(tmp_path: Path) -> None:
    captions = [data.caption for data in figure_data(Analysis(study(tmp_path, rehearsal=True)))]
    assert all(caption.endswith("Rehearsal: made-up stand-ins, not results.") for caption in captions)


def test_captions_give_units_and_the_number_of_samples(tmp_path: Path) -> None:
    captions = {data.kind: data.caption for data in figure_data(Analysis(study(tmp_path)))}
    assert "in percent" in captions["bits"]
    assert "n = 200 test samples over 1 tasks" in captions["bits"]
    assert "3 layers; ties at 3 bits; logarithmic" in captions["deviations"]


def test_a_folder_without_methods_has_no_figure(tmp_path: Path) -> None:
    assert figure_data(Analysis(make_folder(tmp_path / "a"))) == []
    assert figure_data(Analysis(make_folder(tmp_path / "b", control("merged", 0.5)))) == []


# -- the files


def test_a_figure_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = (figure_data(Analysis(study(tmp_path / name))) for name in "ab")
    for one, other in zip(first, second, strict=True):
        assert data_csv(one) == data_csv(other)
        assert drawn(one, "svg") == drawn(other, "svg")
    assert drawn(first[0], "png") == drawn(second[0], "png")


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    drawn(figure_data(Analysis(study(tmp_path)))[0], "svg")
    assert dict(mpl.rcParams) == before


def test_the_csv_file_holds_the_points_at_full_precision(tmp_path: Path) -> None:
    data = by_name(study(tmp_path))["recovery"]
    entries = list(csv.DictReader(io.StringIO(data_csv(data))))
    assert [float(entry["low"]) for entry in entries] == [point["low"] for point in data.points]


def test_saving_writes_picture_and_data_of_every_figure(tmp_path: Path) -> None:
    folder = study(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in save(tmp_path, drawings(Analysis(folder)))}
    assert names == {f"figures/{name}.{end}" for name in by_name(folder) for end in ("svg", "png", "csv")}
    svg = (tmp_path / "figures" / "recovery.svg").read_text()
    assert "<dc:date>" not in svg
    assert (tmp_path / "figures" / "recovery.png").read_bytes().startswith(b"\x89PNG")


def test_figures_are_not_written_through_a_link(tmp_path: Path) -> None:
    folder = study(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="it is a link"):
        save(tmp_path / "run", drawings(Analysis(folder)))
    assert list((tmp_path / "elsewhere").iterdir()) == []


HOSTILE = ["../../x", "<script>alert(1)</script>", "$\\frac{1", "a" * 200, "]]>", "ünïcode 日本", "&amp;\"'"]


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_drawn_as_text_and_name_no_file(tmp_path: Path, name: str) -> None:
    safe = name.replace("../", "dots ")  # a name in a record never reads as a path
    folder = make_folder(
        tmp_path, method(safe, 0.5, merge=safe, target="expert"), control("merged", 0.4, merge=safe)
    )
    for data in figure_data(Analysis(folder)):
        assert re.fullmatch(r"[a-z0-9-]{1,90}", data.name)
        svg = drawn(data, "svg").decode()
        assert "<script" not in svg
    assert drawn(figure_data(Analysis(folder))[0], "png")


def test_merges_whose_file_names_would_be_the_same_are_kept_apart(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, method("gptq", 0.5, merge="a b"), method("rtn", 0.4, merge="a+b"))
    names = [data.name for data in figure_data(Analysis(folder))]
    assert len(set(names)) == len(names)


# -- how they look


def looks(data: FigureData) -> set[tuple[str, str, str | None]]:
    """Method, colour and marker (None for bars) of every series of a figure."""
    shown: set[tuple[str, str, str | None]] = set()
    for axes in DRAW[data.kind](data).axes:
        lines: list[Any] = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
        for container in axes.containers:
            if isinstance(container, ErrorbarContainer):
                container[0].set_label(container.get_label())
                lines.append(container[0])
            else:
                edge = to_hex(container[0].get_edgecolor())
                shown.add((str(container.get_label()), edge, None))
        shown |= {(str(x.get_label()), to_hex(x.get_color()), str(x.get_marker())) for x in lines}
    return {(label.partition(",")[0], colour, marker) for label, colour, marker in shown}


def test_a_method_has_one_colour_and_one_marker_in_every_figure(tmp_path: Path) -> None:
    """Whatever other methods a merge, a number of bits or a figure has."""
    guided: dict[str, Any] = {"target": "expert", "rounding": "gptq"}
    folder = make_folder(
        tmp_path,
        control("experts", 0.9, merge=None),
        *(control("merged", 0.5, merge=merge) for merge in ("ties", "mean")),
        control("epmq-fp", 0.7),
        control("two-step", 0.6, bits=4, merge="mean"),
        *(method(f"m{index}", 0.4 + index / 50, merge="mean") for index in range(9)),
        *(method(name, 0.5, merge="ties", bits=bits) for name in ("m7", "rtn") for bits in (4, 3)),
        method("epmq", 0.6, **guided),
        method("epmq-no-anchor", 0.2, anchor=0.0, **guided),
    )
    figures = figure_data(Analysis(folder))
    assert {data.kind for data in figures} == {"bits", "recovery", "tasks", "deviations", "anchor"}
    seen = [looks(data) for data in figures]
    assert all(seen)
    together = set().union(*seen)
    colours = {(name, colour) for name, colour, _ in together}
    markers = {(name, marker) for name, _, marker in together if marker is not None}
    assert len(colours) == len(markers) == len({name for name, _ in colours}) == 14
    pairs = {(dict(colours)[name], dict(markers)[name]) for name, _ in colours}
    assert len(pairs) == 14, "no two methods look alike"


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_labels_can_be_read_on_light_and_dark() -> None:
    style = adaptive("<svg >")
    light, dark = (re.findall(r"--c\d+:(#[0-9a-f]{6})", part) for part in style.split("@media"))
    assert light[4:] == list(COLOURS)
    assert min(contrast(colour, light[3]) for colour in [*light[:2], *light[4:]]) >= 4.5
    assert min(contrast(colour, dark[3]) for colour in [*dark[:2], *dark[4:]]) >= 4.5


def test_a_picture_for_a_page_names_no_colour_outside_its_variables(tmp_path: Path) -> None:
    for data in figure_data(Analysis(study(tmp_path))):
        body = adaptive(drawn(data, "svg").decode()).split("</style>", 1)[1]
        assert not re.findall(r"#[0-9a-fA-F]{6}\b(?=[;\"])", body)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_labels_keep_their_order_and_distance(values: list[float]) -> None:
    placed = spread(values, 0.1, 0.0, 1.0)
    order = sorted(range(len(values)), key=values.__getitem__)
    heights = [placed[index] for index in order]
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(heights))
    assert heights[0] >= -1e-9
    assert heights[-1] <= 1 + 1e-9


def test_labels_that_do_not_overlap_stay_at_their_height() -> None:
    assert spread([0.9, 0.1, 0.5], 0.1, 0.0, 1.0) == [0.9, 0.1, 0.5]


def test_a_collapsed_method_does_not_set_the_axis() -> None:
    assert floor_of([60, 61, 62, 69, 18]) == 60
    assert floor_of([60, 61, 62, 69, 50]) == 50
    assert floor_of([50.0]) == 50
