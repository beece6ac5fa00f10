"""The suites that come with the package, and what the loader does with a suite file."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import baselines
from baselines.controls import CONTROLS
from benchmarks.run.cells import Request, expand
from benchmarks.suites import forms
from benchmarks.suites import load as suites
from benchmarks.suites.forms import ClipSuite
from epmq.errors import UserError
from epmq.merging import known

BASES = {"b32": "openai/clip-vit-base-patch32", "l14": "openai/clip-vit-large-patch14"}
TASKS_8 = ["sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"]
TASKS_20 = [
    *TASKS_8,
    *("oxford_flowers102", "pcam", "fer2013", "oxford-iiit-pet", "stl10", "cifar100"),
    *("cifar10", "food101", "fashion_mnist", "emnist_letters", "kmnist", "rendered-sst2"),
]
CLIP = {
    f"clip-vit-{size}-{len(tasks)}": (base, tasks)
    for size, base in BASES.items()
    for tasks in (TASKS_8, TASKS_20)
}


def variant(path: Path, change: dict[str, Any]) -> Path:
    """A changed copy of a bundled suite file."""
    described = json.loads((forms.FOLDER / "micro-clip-8.json").read_text("utf-8"))
    path.write_text(json.dumps({**described, **change}))
    return path


def edited(suite: ClipSuite, edit: Callable[[dict[str, Any]], object]) -> ClipSuite:
    described = suite.model_dump()
    edit(described)
    return ClipSuite.model_validate(described)


def test_the_clip_suites_are_bundled() -> None:
    assert set(CLIP) < set(suites.names())


@pytest.mark.parametrize("name", CLIP)
def test_a_clip_suite_has_its_tasks_in_order_and_an_expert_of_its_own_base_for_each(name: str) -> None:
    suite, (base, tasks) = suites.load(name), CLIP[name]
    assert suite.name == name
    assert suite.base == base
    assert [task.task for task in suite.tasks] == tasks
    pattern = f"tanganke/{base.removeprefix('openai/')}_"
    assert [task.expert for task in suite.tasks] == [pattern + task for task in tasks]


@pytest.mark.parametrize("name", CLIP)
def test_a_clip_suite_is_read_by_transformers_with_the_slow_processor(name: str) -> None:
    suite = suites.load_clip(name)
    assert (suite.library, suite.image_processor, suite.rehearsal) == ("transformers", "slow", False)


@pytest.mark.parametrize("name", CLIP)
def test_the_default_comparison_is_the_papers_with_every_control_and_ablation(name: str) -> None:
    options = suites.options(suites.load(name), "default")
    assert options["merge"] == ["task-arithmetic", "ties"]
    assert options["bits"] == [4, 3]
    assert options["samples"] == [256]
    others = {each: suites.options(suites.load(name), each) for each in ("refined", "roundings", "merges")}
    elsewhere = {"qep", "gptaq", "merged-auto", "merged-auto-gptq"}
    bounds = {n for n, recipe in CONTROLS.items() if recipe.before is None}
    assert set(options["controls"]) == bounds - elsewhere
    named = [set(each["controls"]) for each in (options, *others.values())]
    assert set().union(*named) == set(CONTROLS)
    assert {"rtn", "gptq", "awq", "epmq", "epmq-rtn", "epmq-awq", "epmq-features"} <= set(options["method"])
    assert {"epmq-no-anchor", "epmq-features-no-anchor"} <= set(options["method"])
    assert len(expand(Request(**options))) == 72


@pytest.mark.parametrize("name", suites.names())
def test_every_comparison_can_be_asked_for(name: str) -> None:
    suite = suites.load(name)
    cells = {each: expand(Request(**suites.options(suite, each))) for each in suite.comparisons}
    assert {"default", "regression", "curve", "grids"} <= cells.keys()
    assert {cell.spec.symmetric for cell in cells["grids"] if cell.spec} == {True}
    assert len({cell.samples for cell in cells["curve"] if cell.samples}) > 4


@pytest.mark.parametrize("name", suites.names())
def test_every_rounding_and_every_merge_is_compared(name: str) -> None:
    suite = suites.load(name)
    channels, groups = (expand(Request(**suites.options(suite, f"roundings{x}"))) for x in ("", "-groups"))
    asked = {(c.rounding, c.target, c.bits) for c in channels if c.kind == "method"}
    assert asked == set(product(baselines.names(), ("merged", "expert"), (4, 3, 2)))
    asked = {(c.rounding, c.target, c.bits) for c in groups if c.kind == "method"}
    assert asked == set(product(baselines.names(), ("merged", "expert"), (2,)))
    assert {cell.spec.group_size for cell in groups if cell.spec} == {32}
    merged = expand(Request(**suites.options(suite, "merges")))
    assert {cell.merge for cell in merged if cell.kind == "method"} == set(known())
    assert {cell.method for cell in merged if cell.kind == "method"} == {"gptq", "epmq-features", "epmq-qat"}


def test_a_comparison_that_sets_no_axis_is_refused() -> None:
    suite = suites.load("micro-clip-8")
    odd = suite.comparisons["default"].model_copy(update={"axes": {"anchors": 0.1}})
    with pytest.raises(UserError, match="comparison 'odd' sets 'anchors', which is no axis"):
        suites.options(suite.model_copy(update={"comparisons": {"odd": odd}}), "odd")


@pytest.mark.parametrize("name", CLIP)
def test_the_regression_comparison_is_a_part_of_the_default_one(name: str) -> None:
    suite = suites.load(name)
    default, small = (
        expand(Request(**suites.options(suite, comparison))) for comparison in ("default", "regression")
    )
    assert len(small) == 7
    assert {cell.key({}) for cell in small} < {cell.key({}) for cell in default}


def test_suites_of_other_sizes_share_their_tasks() -> None:
    tasks = {
        name: {t.task: t.model_dump(exclude={"expert"}) for t in suites.load(name).tasks} for name in CLIP
    }
    assert tasks["clip-vit-b32-20"] == tasks["clip-vit-l14-20"]
    assert tasks["clip-vit-b32-8"].items() <= tasks["clip-vit-l14-20"].items()


def test_a_used_task_takes_the_suites_own_fields(tmp_path: Path) -> None:
    own = {"use": "pcam", "expert": "someone/expert", "templates": ["{c}"]}
    file = variant(tmp_path / "suite.json", {"tasks": [own]})
    task = suites.load_clip(str(file)).tasks[0]
    assert (task.task, task.expert, task.templates) == ("pcam", "someone/expert", ["{c}"])
    assert task.class_names == ["lymph node", "lymph node containing metastatic tumor tissue"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tasks": [{"use": "pcan", "expert": "a/b"}]}, "task 'pcan' to use is unknown; did you mean 'pcam'"),
        ({"tasks": [{"use": "pcam"}]}, "field 'tasks.0.expert' is missing"),
        ({"tasks": [{"use": "pcam", "expert": "a/b"}] * 2}, "task 'pcam' is there twice"),
        ({"library": "transformers"}, "image_processor: a transformers suite needs slow or fast"),
        ({"image_processor": "slow"}, "image_processor: a transformers suite needs slow or fast"),
        ({"proccessor": "slow"}, "field 'proccessor' is unknown; did you mean 'image_processor'"),
        (
            {"image_processor": "quick"},
            "field 'image_processor' is 'quick': Input should be 'slow' or 'fast'",
        ),
    ],
)
def test_a_bad_suite_file(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    file = variant(tmp_path / "suite.json", change)
    with pytest.raises(UserError) as raised:
        suites.load(str(file))
    assert str(file) in str(raised.value)
    assert complaint in str(raised.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda suite: suite.update(image_processor="fast"),
        lambda suite: suite["tasks"][0]["templates"].append("{c}"),
        lambda suite: suite["tasks"][0]["class_names"].reverse(),
        lambda suite: suite["tasks"][0]["dataset"].update(config="other"),
        lambda suite: suite["tasks"][0]["dataset"].update(eval_split="validation"),
        lambda suite: suite["tasks"].reverse(),
    ],
    ids=["processor", "templates", "class names", "config", "split", "order"],
)
def test_the_fingerprint_follows_what_moves_numbers(edit: Callable[[dict[str, Any]], object]) -> None:
    suite = suites.load_clip("clip-vit-b32-8")
    assert suites.fingerprint(edited(suite, edit)) != suites.fingerprint(suite)


@pytest.mark.parametrize(
    "edit",
    [
        lambda suite: suite["tasks"][0].update(notes=["another"], source=None, expert="a/b"),
        lambda suite: suite["tasks"][0]["dataset"].update(path="a/mirror", licence="MIT"),
        lambda suite: suite.update(description="another"),
    ],
    ids=["notes and expert", "path and licence", "description"],
)
def test_the_fingerprint_ignores_what_cannot_move_numbers(edit: Callable[[dict[str, Any]], object]) -> None:
    suite = suites.load_clip("clip-vit-b32-8")
    assert suites.fingerprint(edited(suite, edit)) == suites.fingerprint(suite)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("openai/clip-vit-base-patch32", True),
        ("1aurent/PatchCamelyon", True),
        ("package:embedded/micro_clip_8/models/base", False),
        ("/home", False),
        ("./models/base", False),
        ("models", False),
        ("a/b/c", False),
    ],
)
def test_what_is_a_hub_id(path: str, expected: bool) -> None:
    assert suites.on_hub(path) is expected


def test_a_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openai" / "clip").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not suites.on_hub("openai/clip")


def test_shared_tasks_are_complete_and_say_where_their_facts_are_from() -> None:
    files = sorted(forms.TASKS.glob("*.json"))
    assert [file.stem for file in files] == sorted(TASKS_20)
    for file in files:
        content = json.loads(file.read_text("utf-8"))
        assert content["task"] == file.stem
        assert content["source"]["commit"] == "54c9e8c9d9621620c720452cd8533332a32d3689"
        assert len(set(content["class_names"])) == len(content["class_names"]), file
