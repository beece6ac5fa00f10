"""Bad options, suite files and output folders end in one line with status 2, before any work."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli.main import main
from results.store.records import SCHEMA
from tests.fixtures.complaints import Output, complaint, refused
from tests.fixtures.tiny_suite import Described, TinySuite, first_task

pytestmark = pytest.mark.usefixtures("nothing_is_computed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "gptqq"], ["method 'gptqq' is unknown", "did you mean 'gptq'"]),
        (["--method", "epmq-feature"], ["did you mean 'epmq-features'"]),
        (["--merge", "task-arithmetics"], ["merge 'task-arithmetics' is unknown", "'task-arithmetic'"]),
        (["--target", "expertt"], ["target 'expertt' is unknown", "did you mean 'expert'"]),
        (["--controls", "zeroshot"], ["control 'zeroshot' is unknown", "did you mean 'zero-shot'"]),
        (
            ["--comparison", "defualt"],
            ["comparison 'defualt' is unknown in local", "did you mean 'default'"],
        ),
        (["--bits", "1"], ["bits 1 is out of range; give 2 to 8"]),
        (["--bits", "4", "9"], ["bits 9 is out of range; give 2 to 8"]),
        (["--bits", "four"], ["--bits: invalid int value: 'four'", "epmq run --help"]),
        (["--group-size", "7"], ["group size 7 does not divide a layer's 16 input columns"]),
        (["--group-size", "32"], ["group size 32 does not divide a layer's 16 input columns"]),
        (["--group-size", "-1"], ["group size -1 is not positive"]),
        (
            ["--samples", "25"],
            ["25 calibration samples asked for", "task 'fruit' has 24 to draw from; give 1 to 24"],
        ),
        (["--samples", "0"], ["0 calibration samples asked for"]),
        (["--seed", "-1"], ["seed -1 is negative; give 0 or more"]),
        (["--anchor", "-1"], ["anchor -1.0 is out of range; give a finite number, 0 or more"]),
        (["--anchor", "nan"], ["anchor nan is out of range"]),
        (["--mixing", "2"], ["mixing 2.0 is out of range; give a number from 0 to 1"]),
        (["--mixing", "0.5"], ["mixing 0.5 changes no cell that is asked for; leave it out"]),
        (["--keep", "0.5"], ["keep 0.5 changes no cell that is asked for"]),
        (["--merge", "ties", "--keep", "1.5"], ["keep 1.5 is out of range; give a share in (0, 1]"]),
        (["--scale", "inf"], ["task-arithmetic: scale inf is not a finite number"]),
        (["--source", "quantized"], ["source 'quantized' is unknown; did you mean 'quantised'"]),
        (
            ["--layers", "*.q_proj"],
            ["layers '*.q_proj' matches no layer; the first is 'blocks.0.attn.in_proj"],
        ),
        (["--block-size", "0"], ["block size 0 is not positive"]),
        (["--frobnicate"], ["unrecognized arguments: --frobnicate; see 'epmq"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_options(
    tiny: TinySuite, tmp_path: Path, capsys: Output, options: list[str], words: list[str]
) -> None:
    said = refused(capsys, tiny.file, tmp_path / "out", *options)
    assert [word for word in words if word not in said] == [], said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["run", "micro-clip-9", "--out", "x"], ["suite 'micro-clip-9' is unknown", "'micro-clip-8'"]),
        (
            ["run", "no/such.json", "--out", "x"],
            ["no/such.json: cannot read the suite file", "check the path"],
        ),
        (["run", "micro-clip-8"], ["arguments are required: --out", "epmq run --help"]),
        (["rnu"], ["invalid choice: 'rnu'", "epmq --help"]),
        ([], ["required: COMMAND"]),
        (["list", "nothing-like-it"], ["no method matches 'nothing-like-it'", "epmq list"]),
        (["table", "no/such/folder"], ["no/such/folder: ", "check the path"]),
        (["check", "no/such/folder", "--golden", "no/such/folder"], ["no/such/folder: ", "check the path"]),
    ],
    ids=lambda value: " ".join(value)[:24],
)
def test_commands(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, command: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = complaint(capsys, *command)
    assert [word for word in words if word not in said] == [], said
    assert not (tmp_path / "x").exists()


def lacks(*path: str) -> Callable[[Described], object]:
    def edit(suite: Described) -> object:
        for name in path[:-1]:
            suite = suite[name]
        return suite.pop(path[-1])

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lacks("tasks"), ["field 'tasks' is missing", "correct the suite file"]),
        (lacks("version"), ["field 'version' is missing"]),
        (lambda s: s.update(version=0), ["field 'version'", "greater than or equal to 1"]),
        (lambda s: s.update(extra=1), ["field 'extra' is unknown; did you mean "]),
        (lambda s: s.update(kind="t5"), ["field 'kind'", "'clip'"]),
        (lambda s: s.update(tasks=[]), ["field 'tasks'", "at least 1"]),
        (lambda s: s["tasks"].append(s["tasks"][0]), ["field 'tasks'", "task 'fruit' is there twice"]),
        (lambda s: first_task(s).update(class_names=[]), ["field 'tasks.0.class_names'", "at least 1"]),
        (lambda s: first_task(s).update(templates=["a photo"]), ["field 'tasks.0.templates'", "lacks {c}"]),
        (
            lambda s: first_task(s)["dataset"].update(train_size="many"),
            ["field 'tasks.0.dataset.train_size'"],
        ),
        (lambda s: s["comparisons"]["default"].update(bits="4"), ["field 'comparisons.default.bits'"]),
    ],
)
def test_malformed_suite_files(
    tiny: TinySuite, tmp_path: Path, capsys: Output, edit: Callable[[Described], object], words: list[str]
) -> None:
    file = tiny.variant(tmp_path / "bad.json", edit)
    said = refused(capsys, file, tmp_path / "out")
    assert [word for word in [f"{file}: ", *words] if word not in said] == [], said


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_suite_files_that_are_no_suite(tmp_path: Path, capsys: Output, content: bytes) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(content)
    said = refused(capsys, file, tmp_path / "out")
    assert said.startswith(f"{file}: ")
    assert said.endswith("correct the suite file")


def manifest(folder: Path, **changes: Any) -> None:
    """A started results folder of the tiny suite."""
    described = {"schema": SCHEMA, "suite": "local/tiny", "suite_version": 1, "created": "2026-01-01"}
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(described | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "other"}, ["holds results of other version 1, asked for local/tiny version 1"]),
        ({"suite_version": 2}, ["holds results of local/tiny version 2, asked for local/tiny version 1"]),
        ({"schema": SCHEMA + 1}, ["manifest.json: schema"]),
        (
            {"schema": 1},
            ["manifest.json: schema: must be 3, not '1', which this version of epmq cannot read"],
        ),
        ({"revisions": {}}, ["its results come from another revision of the suite"]),
    ],
    ids=str,
)
def test_output_folders_of_something_else(
    tiny: TinySuite, tmp_path: Path, capsys: Output, changes: dict[str, Any], words: list[str]
) -> None:
    manifest(tmp_path / "out", **changes)
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    said = complaint(capsys, "run", tiny.file, "--out", tmp_path / "out")
    assert [word for word in [*words, "choose another --out"] if word not in said] == [], said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]"])
def test_damaged_manifests(tiny: TinySuite, tmp_path: Path, capsys: Output, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    said = complaint(capsys, "run", tiny.file, "--out", tmp_path)
    assert said.startswith(f"{tmp_path / 'manifest.json'}: ")


def test_an_output_path_that_is_a_file_or_below_one(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below" / "it"):
        said = complaint(capsys, "run", tiny.file, "--out", out)
        assert said.startswith(f"{out}: cannot write results there: {file} is a file; "), said
    assert file.read_text() == "mine"


def test_an_output_path_that_root_cannot_make_either(tiny: TinySuite, capsys: Output) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    said = complaint(capsys, "run", tiny.file, "--out", "/proc/epmq/out")
    assert said.startswith("/proc/epmq/out: cannot write results there: ")
    assert "choose another folder" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_path_without_permission(tiny: TinySuite, tmp_path: Path, capsys: Output) -> None:
    tmp_path.chmod(0o500)
    try:
        said = refused(capsys, tiny.file, tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
    assert "Permission denied; change its permissions or choose another folder" in said


def test_no_permission_as_the_system_reports_it(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    said = refused(capsys, tiny.file, tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'out'}: cannot write results there: Permission denied; change its")


def test_no_space_for_the_folder(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = complaint(capsys, "run", tiny.file, "--out", tmp_path / "out")
    assert said.endswith(
        "cannot write results there: No space left on device; free some space or choose another folder"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_space_in_the_middle_of_a_run(
    tiny: TinySuite, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # cells are computed here
    out, fsync = tmp_path / "out", os.fsync
    synced: list[int] = []

    def soon_full(file: int) -> None:
        synced.append(file)
        if len(synced) > 8:  # the manifest and two records
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", soon_full)
        assert main(["run", str(tiny.file), "--out", str(out)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"epmq: error: {out}: cannot write results there: No space left on device; free")
    assert main(["run", str(tiny.file), "--out", str(out)]) == 0
    assert main(["table", str(out)]) == 0
    assert "not run" not in capsys.readouterr().out


def test_an_unknown_table_format(tmp_path: Path, capsys: Output) -> None:
    manifest(tmp_path / "run")
    (tmp_path / "run" / "records.jsonl").touch()
    said = complaint(capsys, "table", tmp_path / "run", "--format", "markdwon")
    assert "table format 'markdwon' is unknown" in said
