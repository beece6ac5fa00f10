"""``epmq check-suite`` and ``epmq schema suite``: all that is wrong with a suite file, and its form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks.cli.main import main
from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import FOLDER
from tests.fixtures.tiny_suite import Described, TinySuite, first_task
from tests.fixtures.tiny_text import TinyText

Output = pytest.CaptureFixture[str]


def said(capsys: Output, suite: Path | str) -> list[str]:
    """The findings; the status is 2 where there are any."""
    capsys.readouterr()
    status = main(["check-suite", str(suite)])
    lines = capsys.readouterr().out.splitlines()
    assert status == (2 if lines else 0)
    return lines


def test_nothing_is_wrong_with_whole_suites(tiny: TinySuite, tiny_text: TinyText, capsys: Output) -> None:
    assert said(capsys, tiny.file) == []
    assert said(capsys, tiny_text.file) == []


def test_every_field_that_is_wrong_has_a_line(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    def edit(suite: Described) -> None:
        suite["version"] = 0
        del suite["metric"]
        first_task(suite)["task"] = "../x"
        suite["tasks"][1]["dataset"]["train_size"] = "many"

    lines = said(capsys, tiny.variant(tmp_path / "suite.json", edit))
    for part in ("'version' is 0", "'metric' is missing", "'tasks.0.task'", "'tasks.1.dataset.train_size'"):
        assert sum(part in line for line in lines) == 1, lines
    assert len(lines) == 4


def test_every_folder_name_sample_and_class_that_is_wrong_has_a_line(
    tiny: TinySuite, tmp_path: Path, capsys: Output
) -> None:
    def edit(suite: Described) -> None:
        fruit, birds, tools = suite["tasks"]
        suite["comparisons"]["default"] |= {"method": ["rtn", "gptqq"], "merge": ["tis"]}
        suite["comparisons"]["wide"] = {**suite["comparisons"]["default"], "method": ["rtn"], "bits": [9]}
        suite["comparisons"]["wide"]["merge"] = ["ties"]
        fruit["expert"] = str(tmp_path / "nowhere")
        fruit["class_names"] = [*fruit["class_names"], "plum"]
        birds["dataset"]["path"] = str(tmp_path / "no-data")
        tools["dataset"]["train_size"] = 3
        suite["checkpoints"][str(Path(tools["expert"]) / "model.safetensors")] = "0" * 64

    lines = said(capsys, tiny.variant(tmp_path / "suite.json", edit))
    expected = [
        ("comparison 'default'", "method 'gptqq' is unknown"),
        ("comparison 'wide'", "bits"),
        ("expert of 'fruit'", "neither a folder nor a hub id"),
        ("expert", "the suite pins 000000"),
        ("fruit", "has 3 classes, the suite names 4"),
        ("data set of 'birds'", "neither a folder nor a hub id"),
        ("tools", "has 24 samples, the suite says 3"),
    ]
    for parts in expected:
        assert any(all(part in line for part in parts) for line in lines), (parts, lines)


def test_a_prompt_that_lacks_a_column_is_found(tiny_text: TinyText, tmp_path: Path, capsys: Output) -> None:
    prompts = tmp_path / "warm.yaml"
    text = (tiny_text.folder / "prompts" / "warm.yaml").read_text()
    prompts.write_text(text.replace("{{sentence}}", "{{phrase}}"))

    def edit(suite: Described) -> None:
        first_task(suite)["prompt"] = str(prompts)
        suite["tasks"][1]["prompt"] = str(tmp_path / "none.yaml")

    lines = said(capsys, tiny_text.variant(tmp_path / "suite.json", edit))
    assert any("no column 'phrase'" in line for line in lines), lines
    assert any("none.yaml: cannot read the task file" in line for line in lines), lines


def test_what_comes_from_the_hub_needs_pins(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    def edit(suite: Described) -> None:
        suite["base"] = "somebody/base"
        first_task(suite)["expert"] = "somebody/expert"

    (line,) = said(capsys, tiny.variant(tmp_path / "suite.json", edit))
    assert "somebody/base and 1 more are taken for hub ids" in line
    assert "epmq pin" in line


def test_what_is_no_suite_file_is_an_error(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "suite.json").write_text("{")
    assert main(["check-suite", str(tmp_path / "suite.json")]) == 2
    assert capsys.readouterr().err.startswith("epmq: error: ")
    assert main(["check-suite", "micro-clip-9"]) == 2


def published(capsys: Output, kind: str) -> Any:
    capsys.readouterr()
    assert main(["schema", kind]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_schema_takes_every_bundled_suite(capsys: Output) -> None:
    validator = published(capsys, "suite")
    for name in suites.names():
        errors = list(validator.iter_errors(json.loads((FOLDER / f"{name}.json").read_bytes())))
        assert errors == [], name


@pytest.mark.parametrize(
    "wrong",
    [
        {"colour": "blue"},
        {"version": 0},
        {"name": "../x"},
        {"tasks": []},
        {"kind": "sound"},
        {"tasks": [{"use": "nothing", "expert": "a/b"}]},
        {"tasks": [{"use": "dtd"}]},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_form_refuses(
    wrong: Described, tiny: TinySuite, tmp_path: Path, capsys: Output
) -> None:
    content = {**json.loads(tiny.file.read_bytes()), **wrong}
    assert not published(capsys, "suite").is_valid(content)
    (tmp_path / "suite.json").write_text(json.dumps(content))
    assert suites.faults(str(tmp_path / "suite.json"))


def test_the_schema_of_tasks_takes_every_bundled_task_file(capsys: Output) -> None:
    validator = published(capsys, "task")
    files = sorted(prompt.PROMPTS.glob("*/*.yaml"))
    assert len(files) > 10
    for file in files:
        assert list(validator.iter_errors(prompt._content(file))) == [], file
    assert not validator.is_valid({**prompt._content(files[0]), "doc_to_text": 3})
