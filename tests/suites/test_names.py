"""Names of a suite file become parts of paths and tables: each is checked where the file is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sources import lock as locks
from benchmarks.suites import forms
from benchmarks.suites import load as suites
from epmq.errors import UserError
from tests.fixtures.complaints import Output, complaint, refused
from tests.fixtures.tiny_suite import Described, TinySuite, first_task

pytestmark = pytest.mark.usefixtures("nothing_is_computed")

NO_NAMES = [
    "",
    "..",
    "../x",
    "../../../../tmp/x",
    "/etc/x",
    "a/b/c",
    "a\nb",
    "a@b",
    "a b",
    "-x",
    ".x",
    "é",
    "x" * 101,
]
NO_NAMES += ["a\0b", "\x1b[2J", "\u202ex", "a\\b", "=1+1", "~", "CON:", "a//b", "/", "a/", "/a", "../a"]
PLACES: dict[str, Callable[[Described, Any], object]] = {
    "name": lambda s, name: s.update(name=name),
    "tasks.0.task": lambda s, name: first_task(s).update(task=name),
    "comparisons": lambda s, name: s["comparisons"].update({name: s["comparisons"]["default"]}),
}


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: ascii(name)[:24])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_name_is_refused_with_its_field(
    tiny: TinySuite, tmp_path: Path, capsys: Output, place: str, name: str
) -> None:
    file = tiny.variant(tmp_path / "bad.json", lambda suite: PLACES[place](suite, name))
    said = refused(capsys, file, tmp_path / "out")
    assert said.startswith(f"{file}: field '{place}"), said
    assert "is no name; give up to 100 letters" in said
    assert said.isprintable()


@pytest.mark.parametrize("place", ["base", "expert", "path", "train_split", "label_column"])
@pytest.mark.parametrize(
    "text", ["", "a\nb", "a\0b", "\x1b[2J", "x" * 1001], ids=lambda text: ascii(text)[:12]
)
def test_a_place_is_one_line(tiny: TinySuite, tmp_path: Path, capsys: Output, place: str, text: str) -> None:
    def edit(suite: Described) -> None:
        owner = suite if place in suite else first_task(suite)
        (owner if place in owner else owner["dataset"])[place] = text

    said = refused(capsys, tiny.variant(tmp_path / "bad.json", edit), tmp_path / "out")
    assert f"{place}'" in said
    assert "must be one line of 1 to 1000 printable characters" in said


@pytest.mark.parametrize("version", [0, -1, 2**53 + 1, 10**400, 1.5, None], ids=lambda v: str(v)[:9])
def test_a_version_is_a_small_whole_number(
    tiny: TinySuite, tmp_path: Path, capsys: Output, version: object
) -> None:
    file = tiny.variant(tmp_path / "bad.json", lambda suite: suite.update(version=version))
    assert "'version'" in refused(capsys, file, tmp_path / "out")


@pytest.mark.parametrize("name", ["../../../../x", "/x", "a/../../x"])
def test_pinning_makes_no_folder_for_a_name_that_leads_out(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("a folder was made"))
    content = json.loads((forms.FOLDER / "clip-vit-b32-8.json").read_bytes()) | {"name": name}
    (tmp_path / "s.json").write_text(json.dumps(content))
    assert "field 'name'" in complaint(capsys, "pin", tmp_path / "s.json")


def test_a_lock_of_anybodys_suite_is_no_file_of_the_package(tiny: TinySuite) -> None:
    assert not locks.default_path(tiny.suite).is_relative_to(locks.FOLDER)


@pytest.mark.parametrize(
    "content",
    [b"[" * 10**6, b'{"a":' * 10**5, b'{"version": ' + b"9" * 5000 + b"}", b'{"version": NaN}', b"{" * 2000],
    ids=["lists", "objects", "long number", "NaN", "braces"],
)
def test_deep_and_odd_json_is_one_line(tmp_path: Path, capsys: Output, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    assert refused(capsys, tmp_path / "bad.json", tmp_path / "out").endswith("correct the suite file")


def test_a_suite_file_that_does_not_end_is_not_read_to_its_end(tmp_path: Path, capsys: Output) -> None:
    for name in ("/dev/zero", "/dev/stdin"):
        link = tmp_path / f"{Path(name).name}.json"
        link.symlink_to(name)
        assert "cannot read the suite file" in refused(capsys, link, tmp_path / "out")


def splits(train: str, test: str) -> Callable[[Described], object]:
    return lambda s: first_task(s)["dataset"].update(train_split=train, eval_split=test)


@pytest.mark.parametrize(("train", "test"), [("train", "train"), ("test", "test[:50%]"), ("a[:9]", "a[:9]")])
def test_a_test_split_that_is_the_train_split_is_refused(
    tiny: TinySuite, tmp_path: Path, capsys: Output, train: str, test: str
) -> None:
    said = refused(capsys, tiny.variant(tmp_path / "bad.json", splits(train, test)), tmp_path / "out")
    assert "calibrate on others than are evaluated" in said


def test_parts_of_one_split_can_be_two(tiny: TinySuite, tmp_path: Path) -> None:
    suites.load(str(tiny.variant(tmp_path / "good.json", splits("train[:50%]", "train[50%:]"))))


def test_class_names_that_occur_twice_are_refused(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    file = tiny.variant(
        tmp_path / "bad.json", lambda s: first_task(s).update(class_names=["fig", "pear", "fig"])
    )
    assert "class 'fig' is there twice" in refused(capsys, file, tmp_path / "out")


def test_two_tasks_that_ask_the_same_are_refused(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    def edit(suite: Described) -> None:
        suite["tasks"].append({**first_task(suite), "task": "again", "expert": suite["tasks"][1]["expert"]})

    said = refused(capsys, tiny.variant(tmp_path / "bad.json", edit), tmp_path / "out")
    assert "tasks 'fruit' and 'again' ask the same of the same data; drop one" in said


def test_two_tasks_on_the_same_samples_are_in_the_record(tiny: TinySuite, tmp_path: Path) -> None:
    def edit(suite: Described) -> None:
        suite["tasks"].append({**first_task(suite), "task": "again", "templates": ["{c}?"]})

    suite = suites.load(str(tiny.variant(tmp_path / "s.json", edit)))
    assert suite.shared_samples == ["tasks fruit and again are evaluated on the same samples"]
    assert [each for name in suites.names() for each in suites.load(name).shared_samples] == []


def test_a_home_folder_is_meant_by_its_sign(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said = complaint(capsys, "table", "~/x")
    assert said.startswith(f"{tmp_path / 'home' / 'x'}: ")
    assert complaint(capsys, "run", "~/s.json", "--out=~/x").startswith(f"{tmp_path / 'home' / 's.json'}: ")
    assert "there is no such home folder" in complaint(capsys, "table", "~nobody-of-that-name/x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["[" * 5000, "task: " + "[" * 5000, "a: !!python/object:os.system x", "a: !new x"]
)
def test_task_files_of_lists_in_lists_and_foreign_tags(tmp_path: Path, text: str) -> None:
    from benchmarks.suites import prompt

    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=r"t\.yaml: is no YAML"):
        prompt.read(str(tmp_path / "t.yaml"))
