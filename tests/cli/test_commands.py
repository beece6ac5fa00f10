"""The command line from end to end: run, table, list and check."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cli.main import main
from benchmarks.run import executors
from epmq.calibration import Calibration
from results.analysis.analysis import Analysis
from results.store.folder import RunFolder
from results.store.records import Manifest, Record, TaskResult
from results.tables.comparison import FORMATS, render
from tests.fixtures import plugin_package
from tests.fixtures.tiny_suite import TASKS, TinySuite

Output = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def out(tiny: TinySuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the suite's own comparison, not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main(["run", str(tiny.file), "--out", str(folder)]) == 0
    return folder


def test_run_takes_the_suites_comparison_and_says_what_comes_next(
    tiny: TinySuite, out: Path, capsys: Output
) -> None:
    assert main(["run", str(tiny.file), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"7 cells in {out}; 'epmq table {out}' prints them" in said.err
    records = RunFolder.open(out).records()
    assert [r.method for r in records] == [
        *("experts", "zero-shot", "merged"),
        *("rtn", "epmq-rtn", "gptq", "epmq"),
    ]


def test_run_overrides_the_comparison_and_records_what_was_asked(tiny: TinySuite, tmp_path: Path) -> None:
    options = ["--method", "gptq", "epmq", "--controls", "--bits", "3", "--samples", "5", "--seed", "2"]
    options += ["--merge", "ties", "--scale", "0.5", "--keep", "0.1", "--anchor", "0.2", "--damping", "0.02"]
    options += ["--group-size", "8", "--symmetric", "--source", "merged", "--layers", "*.mlp.*"]
    assert main(["run", str(tiny.file), "--out", str(tmp_path), *options]) == 0
    folder = RunFolder.open(tmp_path)
    gptq, epmq = folder.records()
    for record in (gptq, epmq):
        assert (record.merge, record.merge_options, record.seed) == ("ties", {"scale": 0.5, "keep": 0.1}, 2)
        expected = {"bits": 3, "samples": 5, "group_size": 8, "symmetric": True, "source": "merged"}
        assert expected.items() <= record.axes.items()
        assert len(record.layers) == 4
    assert (gptq.axes["damping"], epmq.axes["anchor"]) == (0.02, 0.2)
    asked = folder.manifest.asked
    assert (asked["method"], asked["anchor"], asked["suite"]) == (["gptq", "epmq"], 0.2, str(tiny.file))


def test_an_interrupted_run_says_how_to_go_on(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors, "compute", interrupt)
    assert main(["run", str(tiny.file), "--out", str(tmp_path)]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "epmq: interrupted; finished cells are kept, run the same command again to go on"
    assert main(["table", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("not run") == 7


@pytest.mark.parametrize("fmt", FORMATS)
def test_table_prints_every_format(out: Path, fmt: str, capsys: Output) -> None:
    assert main(["table", str(out), "--format", fmt]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == render(Analysis.open(out), fmt)
    assert all(word in said.out for word in ("epmq-rtn", "zero-shot", "experts", *TASKS))


def test_table_saves_every_format_beside_the_records(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    options = ["--method", "rtn", "--target", "merged", "--controls"]
    main(["run", str(tiny.file), "--out", str(tmp_path), *options])
    capsys.readouterr()
    assert main(["table", str(tmp_path), "--save"]) == 0
    said = capsys.readouterr()
    assert said.out == (tmp_path / "table.md").read_text()
    for name in ("table.md", "table.csv", "table.tex", "table.json"):
        assert (tmp_path / name).stat().st_size > 0
        assert name in said.err


def listed(capsys: Output, *arguments: str) -> dict[str, list[dict[str, str]]]:
    assert main(["list", *arguments, "--json"]) == 0
    found: dict[str, list[dict[str, str]]] = json.loads(capsys.readouterr().out)
    return found


def test_list_shows_suites_merges_methods_and_controls(capsys: Output) -> None:
    found = {kind: {row["name"] for row in rows} for kind, rows in listed(capsys).items()}
    assert {"micro-clip-8"} <= found["suites"]
    assert {"simple-average", "task-arithmetic", "ties"} <= found["merges"]
    assert {"rtn", "gptq", "awq", "epmq", "epmq-features", "epmq-awq", "epmq-no-anchor"} <= found["methods"]
    assert {"zero-shot", "experts", "merged", "regmean-gptq", "two-step"} <= found["controls"]
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for names in found.values() for name in names)


def test_every_listed_method_has_a_summary_and_a_reference(capsys: Output) -> None:
    for row in listed(capsys)["methods"]:
        assert row["summary"]
        assert row["reference"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("gptq*", {"gptq", "gptq-tuned", "gptq-descent", "gptq-refit"}),
        ("rtn", {"rtn"}),
        ("*tn", {"rtn", "epmq-rtn"}),
    ],
)
def test_list_takes_patterns(pattern: str, expected: set[str], capsys: Output) -> None:
    found = listed(capsys, pattern)
    assert found.keys() == {"methods"}
    assert {row["name"] for row in found["methods"]} == expected


def test_check_passes_on_itself(out: Path, capsys: Output) -> None:
    assert main(["check", str(out), "--golden", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("passed: 7 golden cells, 0 moves, 0 of them regressions; ")


def worse(folder: RunFolder, record: Record) -> tuple[Record, dict[str, np.ndarray]]:
    """The record with no sample right."""
    hits = {task: np.zeros_like(hit) for task, hit in folder.samples(record.key).correct.items()}
    tasks = {task: TaskResult(value=0.0, samples=len(hit)) for task, hit in hits.items()}
    return record.model_copy(update={"tasks": tasks, "average": 0.0}), hits


def tampered(out: Path, path: Path, method: str, drop: bool = False) -> Path:
    """A copy of a run in which one method is worse, or missing."""
    folder = RunFolder.open(out)
    copy = RunFolder.open(
        path, Manifest(**folder.manifest.model_dump(exclude={"schema_version"})), create=True
    )
    for record in folder.records():
        if record.method != method:
            copy.append(record, *folder.samples(record.key))
        elif not drop:
            copy.append(*worse(folder, record))
    return path


@pytest.mark.parametrize(("drop", "verdict"), [(False, "worse"), (True, "missing")])
def test_check_fails_on_a_worse_copy(
    out: Path, tmp_path: Path, capsys: Output, drop: bool, verdict: str
) -> None:
    copy = tampered(out, tmp_path / "copy", "gptq", drop)
    assert main(["check", str(copy), "--golden", str(out)]) == 1
    said = capsys.readouterr().out
    assert verdict in said
    assert "task-arithmetic gptq merged 4-bit" in said
    assert "FAILED: 7 golden cells" in said
    assert main(["check", str(out), "--golden", str(copy)]) == 0, "better than golden is no regression"


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["table", "--help"], ["check", "--help"]])
def test_help_is_help(command: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("usage: epmq")


def test_the_axes_are_options_with_their_defaults(capsys: Output) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for axis in fields(Calibration):
        assert axis.name == "target" or f"--{axis.name.replace('_', '-')} " in text
    for option in (f"--anchor FLOAT ({Calibration().anchor})", "--layers STR (*)", "--symmetric (off)"):
        assert option in text


def test_help_table_and_check_do_not_wait_for_torch(out: Path) -> None:
    script = f"""
import sys
from benchmarks.cli.main import main
assert main(["table", {str(out)!r}]) == 0
assert main(["run", "micro-clip-9", "--out", "nowhere"]) == 2
heavy = {{"torch", "open_clip", "datasets", "transformers", "numba", "scipy.stats", "baselines"}}
sys.exit(", ".join(sorted(heavy & sys.modules.keys())) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


THIRD_PARTY = """
import sys
from benchmarks.cli.main import main
suite, out = sys.argv[1:]
status = main(["list", "*row-best*"])
options = ["--method", "row-best", "gptq", "epmq-row-best", "--target", "merged", "--controls"]
status += main(["run", suite, "--out", out, *options])
sys.exit(status + main(["table", out]))
"""


def test_a_method_of_another_package_is_listed_run_and_shown(
    tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    package = plugin_package.write_package(tmp_path / "site-packages")
    done = plugin_package.run_with(package, "-c", THIRD_PARTY, str(tiny.file), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    listing, table = done.stdout.split("| merge", 1)
    assert re.search(r"row-best +rounding +Hessian +none +the better of RTN and GPTQ for every row", listing)
    assert "epmq-row-best" in listing
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    found = {(row[1], row[2]): row[-1] for row in rows}
    assert found.keys() == {("gptq", "merged"), ("row-best", "merged"), ("epmq-row-best", "expert")}
    assert found["row-best", "merged"], "it stands beside GPTQ with a paired interval"
