"""A suite is what it reads: a file of anybody's that borrows a bundled suite's name is another suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.suites import forms, origins
from benchmarks.suites import load as suites
from results.store import origin
from tests.fixtures.tiny_suite import Described, TinySuite

PAPERS = "clip-vit-b32-8"


def changed(path: Path, edit: Callable[[Described], object]) -> str:
    """A changed copy of the paper's suite file."""
    content = json.loads((forms.FOLDER / f"{PAPERS}.json").read_bytes())
    edit(content)
    path.write_text(json.dumps(content))
    return str(path)


def test_results_know_what_every_bundled_suite_reads() -> None:
    assert origins.updated() == origin.known(), "run: python -m benchmarks.suites.origins"


@pytest.mark.parametrize("name", suites.names())
def test_a_bundled_suite_is_found_by_what_it_reads(name: str) -> None:
    assert origin.suite_of(suites.identity(suites.load(name))) == name


WORDS: dict[str, Callable[[Described], object]] = {
    "nothing": lambda s: None,
    "description": lambda s: s.update(description="mine"),
    "comparisons": lambda s: s["comparisons"].pop("curve"),
    "order of tasks": lambda s: s["tasks"].reverse(),
}


@pytest.mark.parametrize("edit", WORDS.values(), ids=WORDS)
def test_what_a_suite_says_of_itself_does_not_make_another_one(
    tmp_path: Path, edit: Callable[[Described], object]
) -> None:
    copy = suites.load(changed(tmp_path / "copy.json", edit))
    assert copy.name == PAPERS
    assert suites.identity(copy) == suites.identity(suites.load(PAPERS))


def other_templates(suite: Described) -> None:
    suite["tasks"][0]["templates"] = ["{c}"]


READS: dict[str, Callable[[Described], object]] = {
    "base": lambda s: s.update(base="openai/another"),
    "an expert": lambda s: s["tasks"][0].update(expert="someone/expert"),
    "fewer tasks": lambda s: s["tasks"].pop(),
    "prompts": other_templates,
    "class names": lambda s: s["tasks"][0].update(class_names=["a", "b"]),
    "pinned files": lambda s: s.update(checkpoints={"x": "0" * 64}),
}


@pytest.mark.parametrize("edit", READS.values(), ids=READS)
def test_an_impostor_gets_a_namespace(tmp_path: Path, edit: Callable[[Described], object]) -> None:
    impostor = suites.load(changed(tmp_path / "impostor.json", edit))
    assert impostor.name == f"local/{PAPERS}"
    assert origin.suite_of(suites.identity(impostor)) is None


def test_a_folder_that_is_called_like_a_repository_is_another_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = suites.load(PAPERS)
    before = suites.identity(bundled)
    (tmp_path / bundled.base).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert suites.identity(bundled) != before
    assert suites.load(changed(tmp_path / "copy.json", lambda s: None)).name == PAPERS  # both read the folder
    assert origin.suite_of(suites.identity(bundled)) is None


def test_a_namespace_of_ones_own_is_kept(tiny: TinySuite, tmp_path: Path) -> None:
    def called(name: str) -> str:
        return suites.load(str(tiny.variant(tmp_path / "s.json", lambda s: s.update(name=name)))).name

    assert called("tiny") == "local/tiny"
    assert called("alice/tiny") == "alice/tiny"
    assert called("lm") == "local/lm"


def test_a_rehearsal_keeps_the_name_of_what_it_rehearses(tmp_path: Path) -> None:
    def edit(suite: Described) -> None:
        suite["rehearsal"] = True
        other_templates(suite)

    assert suites.load(changed(tmp_path / "r.json", edit)).name == PAPERS
