"""A folder of results: `manifest.json`, `records.jsonl` and `samples/<key>.npz`.

Several processes may append to one folder at the same time. A kill at any moment loses no finished
record: correctness is in place before the record's line, a line counts once its line break is written,
and a torn last line is removed before the next one. The locks are `flock` on `records.jsonl` (POSIX only).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from numpy.typing import ArrayLike

from results import samples
from results.errors import ResultError
from results.files import locked, os_errors, write_atomically
from results.records import Manifest, Record


class RunFolder:
    """The records of one run of one suite version. Use `RunFolder.open`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._by_key: dict[str, Record] = {}

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], manifest: Manifest | None = None, *, create: bool = False
    ) -> RunFolder:
        """Open the folder `path`, which must hold results of the manifest's suite, version and schema.

        With `create` (needs a manifest) the folder is made where it is missing, and tried for writing;
        in an existing folder the manifest's asked cells are added to those it already lists.

        Raises
        ------
        ResultError
            where there is no usable folder, it belongs to another suite, suite version or schema, or
            it can't be written.
        """
        path = Path(path)
        if create:
            if manifest is None:
                raise TypeError("RunFolder.open(create=True) needs a manifest")
            with os_errors(path, "write results there"):
                return cls(path, _create(path, manifest))
        stored = _read_manifest(path)
        if manifest is not None:
            _same_suite(path, stored, manifest)
        return cls(path, stored)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the lines of `records.jsonl`, as `records.jsonl:17: what is wrong`."""
        return self._read()[1]

    def records(self) -> list[Record]:
        """Return the undamaged records in file order; where a key is repeated the last one counts."""
        return self._read()[0]

    def append(self, record: Record, correct: Mapping[str, ArrayLike]) -> None:
        """Add a finished cell and its correctness: one boolean or 0/1 array (samples,) per task.

        Raises
        ------
        ResultError
            where the record belongs to another suite version, `correct` does not agree with it, or the
            disk refuses.
        """
        if (record.suite, record.suite_version) != (self.manifest.suite, self.manifest.suite_version):
            raise ResultError(f"record {record.key}: {_foreign(record, self.manifest)}")
        data = samples.encode(samples.checked(record, correct, f"record {record.key}"))
        line = record.to_json().encode() + b"\n"
        with os_errors(self.path, "write results there"):
            write_atomically(self._samples(record.key), data)
            with locked(self.path / "records.jsonl", "ab+") as file:
                _drop_torn_line(file)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._by_key[record.key] = record

    def correct(self, key: str) -> samples.Correct:
        """Return boolean arrays (samples,) by task: which test samples the cell `key` got right.

        Raises
        ------
        ResultError
            where the folder has no such record, or its file is missing, damaged, holds a pickle, or
            disagrees with the record.
        """
        if key not in self._by_key:
            self._read()
        if key not in self._by_key:  # only keys of valid records pass, so none leads out of the folder
            raise ResultError(f"{self.path}: holds no record with key {key!r}")
        return samples.read(self._samples(key), self._by_key[key])

    def _samples(self, key: str) -> Path:
        return self.path / "samples" / f"{key}.npz"

    def _read(self) -> tuple[list[Record], list[str]]:
        with os_errors(self.path, "read records.jsonl"), locked(self.path / "records.jsonl", "rb") as file:
            lines = file.read().split(b"\n")
        torn = lines.pop()
        self._by_key, problems = {}, []
        for number, line in enumerate(lines, start=1):
            try:
                record = _parse(line, self.manifest)
            except ResultError as error:
                problems.append(f"records.jsonl:{number}: {error}; skipped")
                continue
            if self._by_key.pop(record.key, None) is not None:
                problems.append(f"records.jsonl:{number}: repeats key {record.key}; the last one counts")
            self._by_key[record.key] = record
        if torn:
            problems.append(f"records.jsonl:{len(lines) + 1}: unfinished last line, from a kill; skipped")
        return list(self._by_key.values()), problems


def _parse(line: bytes, manifest: Manifest) -> Record:
    record = Record.from_json(line)
    if (record.suite, record.suite_version) != (manifest.suite, manifest.suite_version):
        raise ResultError(_foreign(record, manifest))
    return record


def _foreign(record: Record, manifest: Manifest) -> str:
    return (
        f"belongs to {record.suite} version {record.suite_version}, "
        f"the folder to {manifest.suite} version {manifest.suite_version}"
    )


def _drop_torn_line(file: BinaryIO) -> None:
    """Cut what follows the last line break; under the exclusive lock only a kill can have left it."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read() == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


def _create(path: Path, manifest: Manifest) -> Manifest:
    (path / "samples").mkdir(parents=True, exist_ok=True)
    with locked(path / "records.jsonl", "ab+") as file:  # one process at a time makes the manifest
        if (path / "manifest.json").exists():
            stored = _read_manifest(path)
            _same_suite(path, stored, manifest)
            manifest = _with_cells(stored, manifest)
            if manifest == stored:
                return stored
        elif file.tell():
            raise ResultError(f"{path}: holds records without a manifest.json; choose another --out")
        data = json.dumps(json.loads(manifest.to_json()), indent=2, sort_keys=True)
        write_atomically(path / "manifest.json", data.encode() + b"\n")
    return manifest


def _with_cells(stored: Manifest, manifest: Manifest) -> Manifest:
    """Return `stored` with the cells that `manifest` asks for beside its own."""
    known = {cell.key for cell in stored.cells}
    added = [cell.model_dump(exclude_unset=True) for cell in manifest.cells if cell.key not in known]
    if not added:
        return stored
    cells = [cell.model_dump(exclude_unset=True) for cell in stored.cells] + added
    return stored.model_copy(update={"asked": {**stored.asked, "cells": cells}})


def _read_manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    with os_errors(path, "read manifest.json"):
        if path.is_dir() and not file.exists():
            raise ResultError(f"{path}: is not a folder of results, it has no manifest.json; check the path")
        data = file.read_bytes()
    try:
        return Manifest.from_json(data)
    except ResultError as error:
        raise ResultError(f"{file}: {error}; choose another --out") from error


def _same_suite(path: Path, stored: Manifest, asked: Manifest) -> None:
    if (stored.suite, stored.suite_version) != (asked.suite, asked.suite_version):
        raise ResultError(
            f"{path}: holds results of {stored.suite} version {stored.suite_version}, "
            f"asked for {asked.suite} version {asked.suite_version}; choose another --out"
        )
