"""A results folder loses no finished record, refuses what is not its own, and explains what is wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from epmq.errors import UserError
from results.store.files import locked
from results.store.folder import RunFolder
from results.store.records import Record
from tests.fixtures.records import make_cell, make_correct, make_folder, make_key, make_manifest, make_record


def keys(folder: RunFolder) -> list[str]:
    return [record.key for record in folder.records()]


def unsealed(record: Record) -> Record:
    return record.model_copy(update={"samples_sha256": None, "record_sha256": None})


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    cells = [make_cell("a"), make_cell("b", {"digits": 0.5, "shapes": 0.25})]
    make_folder(tmp_path / "new" / "run", *cells)
    folder = RunFolder.open(tmp_path / "new" / "run")
    assert [unsealed(record) for record in folder.records()] == [record for record, _ in cells]
    assert folder.read().problems == []
    for record, correct in cells:
        read = folder.samples(record.key).correct
        assert all(read[task].dtype == np.bool_ for task in read)
        assert {task: list(got) for task, got in read.items()} == {t: list(got) for t, got in correct.items()}


def test_the_same_cells_give_the_same_bytes(tmp_path: Path) -> None:
    cells = [make_cell("a"), make_cell("b")]
    for name in ("one", "two"):
        make_folder(tmp_path / name, *cells)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_samples_are_an_npz_without_pickle_and_any_task_name_works(tmp_path: Path) -> None:
    correct = make_correct({"file": 0.5, "allow_pickle": 0.25, "a.npy": 1.0, "a": 0.0, "é|/x": 0.125})
    folder = make_folder(tmp_path, (make_record(correct, "a"), correct))
    assert {task: got.mean() for task, got in folder.samples(make_key("a")).correct.items()} == {
        task: got.mean() for task, got in correct.items()
    }
    with np.load(tmp_path / "samples" / f"{make_key('a')}.npz", allow_pickle=False) as arrays:
        assert arrays["file"].dtype == np.uint8


# -- kills and damage


def test_a_kill_while_the_last_line_is_written_loses_no_finished_record(tmp_path: Path) -> None:
    cells = [make_cell(name) for name in "abc"]
    folder = make_folder(tmp_path, *cells)
    file = tmp_path / "records.jsonl"
    whole = file.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for length in range(last, len(whole)):
        file.write_bytes(whole[:length])
        assert keys(folder) == [make_key("a"), make_key("b")]
        assert len(folder.read().problems) == (length > last)
    for length in (*range(last, len(whole), 100), len(whole) - 1):
        file.write_bytes(whole[:length])
        folder.append(*cells[2])
        assert file.read_bytes() == whole
        assert folder.read().problems == []


def test_a_kill_between_the_samples_and_the_line_is_a_cell_not_done(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"), make_cell("b"))
    file = tmp_path / "records.jsonl"
    file.write_bytes(file.read_bytes().split(b"\n")[0] + b"\n")
    assert keys(folder) == [make_key("a")]
    folder.append(*make_cell("b"))
    assert keys(folder) == [make_key("a"), make_key("b")]


def test_damaged_lines_are_reported_with_their_number_and_skipped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"))
    good = (tmp_path / "records.jsonl").read_bytes()
    other = make_cell("c", suite_version=2)[0].to_json().encode()
    damaged = [b"{nonsense", b"", b"\xff\xfe", good.strip().replace(b'"seed":0', b'"seed":-1'), other]
    (tmp_path / "records.jsonl").write_bytes(good + b"\n".join(damaged) + b"\n")
    folder.append(*make_cell("b"))
    assert keys(folder) == [make_key("a"), make_key("b")]
    assert [problem.split(":")[:2] for problem in folder.read().problems] == [
        ["records.jsonl", str(number)] for number in range(2, 7)
    ]
    assert "seed: Input should be greater than or equal to 0, not -1" in folder.read().problems[3]
    assert "belongs to toy version 2, the folder to toy version 1" in folder.read().problems[4]
    assert all("\n" not in problem for problem in folder.read().problems)


def test_a_repeated_key_keeps_the_last_record_and_is_reported(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"), make_cell("b"), make_cell("a", {"digits": 0.5}))
    assert keys(folder) == [make_key("b"), make_key("a")]
    assert folder.records()[1].average == 0.5
    assert folder.samples(make_key("a")).correct["digits"].mean() == 0.5
    assert folder.read().problems == [f"records.jsonl:3: repeats key {make_key('a')}; the last one counts"]


def _append_many(path: Path, worker: int, count: int) -> None:
    folder = RunFolder.open(path, make_manifest(), create=True)
    for index in range(count):
        folder.append(*make_cell(f"{worker}-{index}"))


def test_processes_can_create_and_fill_one_folder_together(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_append_many, args=(tmp_path / "run", worker, 25)) for worker in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    folder = RunFolder.open(tmp_path / "run")
    assert sorted(keys(folder)) == sorted(make_key(f"{w}-{index}") for w in range(2) for index in range(25))
    assert folder.read().problems == []


def test_a_process_waits_while_another_one_writes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"))
    waiting = [
        threading.Thread(target=folder.append, args=make_cell("b")),
        threading.Thread(target=RunFolder.open(tmp_path).records),
    ]
    with locked(tmp_path / "records.jsonl", "ab+"):
        for thread in waiting:
            thread.start()
            thread.join(0.1)
        assert all(thread.is_alive() for thread in waiting)
    for thread in waiting:
        thread.join()
    assert keys(folder) == [make_key("a"), make_key("b")]


def _append_until_killed(path: Path, finished: Connection) -> None:
    folder = RunFolder.open(path, make_manifest(), create=True)
    for index in range(1000):
        folder.append(*make_cell(str(index)))
        finished.send(make_key(str(index)))


@pytest.mark.parametrize("moment", [0.05, 0.08, 0.11])
def test_a_killed_process_has_lost_nothing_that_it_had_finished(tmp_path: Path, moment: float) -> None:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    worker = fork.Process(target=_append_until_killed, args=(tmp_path / "run", sender))
    worker.start()
    finished = [receiver.recv()]
    time.sleep(moment)
    worker.kill()
    worker.join()
    while receiver.poll():
        finished.append(receiver.recv())
    folder = make_folder(tmp_path / "run", make_cell("next"))
    assert keys(folder)[: len(finished)] == finished
    assert keys(folder)[-1] == make_key("next")
    assert folder.read().problems == []
    assert all(folder.samples(key).correct for key in keys(folder))


# -- opening


@pytest.mark.parametrize("other", [{"suite": "toys"}, {"suite_version": 2}], ids=str)
@pytest.mark.parametrize("create", [True, False])
def test_a_folder_of_another_suite_is_refused(tmp_path: Path, other: dict[str, object], create: bool) -> None:
    make_folder(tmp_path)
    asked = make_manifest(**other)
    with pytest.raises(UserError, match=r"holds results of toy version 1, asked for .*choose another --out"):
        RunFolder.open(tmp_path, asked, create=create)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"schema": 7}', "schema: must be 3, not '7', which"),
        (b"", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b'{"name": "a web page"}', "schema: Field required"),
        (b'{"schema": 3}', "suite: Field required"),
    ],
    ids=["schema", "empty", "deep", "foreign", "without a suite"],
)
def test_an_unusable_manifest_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=f"manifest.json: {complaint}.*choose another --out"):
        RunFolder.open(tmp_path)


def test_a_folder_without_a_manifest_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        RunFolder.open(tmp_path)
    (tmp_path / "records.jsonl").write_bytes(b"{}\n")
    with pytest.raises(UserError, match=r"holds records without a manifest\.json"):
        RunFolder.open(tmp_path, make_manifest(), create=True)


def test_reopening_keeps_the_manifest_and_adds_the_cells_asked_for(tmp_path: Path) -> None:
    def asked(*names: str) -> dict[str, object]:
        cell = {"merge": "ties", "method": "rtn", "target": "merged", "bits": 4, "seed": 3}
        return {"cells": [{"key": make_key(name), **cell} for name in names], "bits": [4]}

    make_folder(tmp_path, asked=asked("a", "b"))
    before = (tmp_path / "manifest.json").read_bytes()
    make_folder(tmp_path, asked=asked("b"), created="later")
    assert (tmp_path / "manifest.json").read_bytes() == before
    make_folder(tmp_path, asked=asked("b", "c"), created="later")
    manifest = RunFolder.open(tmp_path).manifest
    assert manifest == make_manifest(asked=asked("a", "b", "c"))


def test_a_path_that_can_not_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere/run")):
        with pytest.raises(UserError, match="cannot write results there") as caught:
            RunFolder.open(path, make_manifest(), create=True)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "file", tmp_path / "missing"):
        with pytest.raises(UserError, match=r"cannot read manifest\.json"):
            RunFolder.open(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied; change its permissions"):
        RunFolder.open(tmp_path / "run", make_manifest(), create=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_is_one_line_and_leaves_the_folder_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder = make_folder(tmp_path, make_cell("a"))
    before = sorted(tmp_path.rglob("*"))

    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match=f"cannot write results there: {os.strerror(code)}; "):
            folder.append(*make_cell("b"))
    assert sorted(tmp_path.rglob("*")) == before
    assert keys(folder) == [make_key("a")]


def test_a_line_that_the_disk_takes_in_part_is_a_cell_not_done(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"), make_cell("b"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "records.jsonl").stat().st_size
    assert size > 1000 > (tmp_path / "samples" / f"{make_key('a')}.npz").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        with pytest.raises(UserError, match="cannot write results there: File too large"):
            folder.append(*make_cell("c"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "unfinished last line" in folder.read().problems[0]
    folder.append(*make_cell("c"))
    assert keys(folder) == [make_key(name) for name in "abc"]
    assert folder.read().problems == []


@pytest.mark.parametrize("name", ["manifest.json", "records.jsonl", "samples"])
def test_a_link_is_neither_read_nor_written_through(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path / "run", make_cell("a"))
    outside = tmp_path / "outside"
    (tmp_path / "run" / name).rename(outside)
    (tmp_path / "run" / name).symlink_to(outside)
    before = sorted((path, path.stat().st_mtime_ns) for path in (outside, *outside.glob("*")))
    with pytest.raises(UserError, match="it is a link; put the file itself there"):
        make_folder(tmp_path / "run", make_cell("b"))
    with pytest.raises(UserError, match="it is a link; put the file itself there"):
        RunFolder.open(tmp_path / "run").samples(make_key("a"))
    assert sorted((path, path.stat().st_mtime_ns) for path in (outside, *outside.glob("*"))) == before


def test_a_folder_may_itself_be_reached_through_a_link(tmp_path: Path) -> None:
    make_folder(tmp_path / "run", make_cell("a"))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    make_folder(tmp_path / "link", make_cell("b"))
    assert keys(RunFolder.open(tmp_path / "run")) == [make_key("a"), make_key("b")]


def test_a_temporary_file_that_was_planted_is_replaced_not_followed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    (tmp_path / "victim").write_text("keep")
    planted = tmp_path / "run" / "samples" / f".{make_key('a')}.npz.{os.getpid()}.tmp"
    planted.symlink_to(tmp_path / "victim")
    folder.append(*make_cell("a"))
    assert (tmp_path / "victim").read_text() == "keep"
    assert keys(folder) == [make_key("a")]


@pytest.mark.parametrize("name", ["manifest.json", "records.jsonl"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    make_folder(tmp_path, make_cell("a"))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="not a regular file"):
        RunFolder.open(tmp_path).records()


def test_a_rehearsal_and_results_do_not_share_a_folder(tmp_path: Path) -> None:
    make_folder(tmp_path / "results")
    make_folder(tmp_path / "rehearsal", rehearsal=True)
    with pytest.raises(UserError, match="holds results, asked for a rehearsal; choose another --out"):
        make_folder(tmp_path / "results", rehearsal=True)
    with pytest.raises(UserError, match="holds a rehearsal, asked for results; choose another --out"):
        make_folder(tmp_path / "rehearsal")


# -- keys


@pytest.mark.parametrize("key", ["../manifest", "/etc/passwd", "", "0" * 16, "a/../b"])
def test_no_key_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    folder = make_folder(tmp_path, make_cell("a"))
    with pytest.raises(UserError, match="holds no record with key"):
        folder.samples(key)


def test_a_record_of_another_suite_version_is_not_appended(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="belongs to toy version 2, the folder to toy version 1"):
        make_folder(tmp_path).append(*make_cell("a", suite_version=2))
