"""A folder of results: ``manifest.json``, ``records.jsonl`` and ``samples/<key>.npz``.

Several processes may append to one folder at the same time. A kill at any moment loses no finished record:
correctness is in place before the record's line, a line counts once its line break is written, and a torn
last line is removed before the next one. The locks are ``flock`` on ``records.jsonl`` (POSIX only).

Each record holds the SHA-256 of its file of samples and of itself, which ``results.judge.verify`` compares.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from numpy.typing import ArrayLike

from epmq.errors import UserError
from results.store.files import locked, os_errors, read_bounded, refuse_link, write_atomically
from results.store.records import Manifest, Record
from results.store.samples import Samples, checked, decode, encode, largest

_MAX_MANIFEST: Final = 1 << 25  # bytes
_MAX_RECORDS: Final = 1 << 28  # bytes of records.jsonl; some forty thousand cells
_MAX_LINE: Final = 1 << 23  # bytes
_MAX_PROBLEMS: Final = 1000


class Reading(NamedTuple):
    """What ``records.jsonl`` holds: the undamaged records in file order, of a repeated key the last.

    ``problems`` says what is wrong with its lines, as ``records.jsonl:17: what is wrong``.
    """

    records: list[Record]
    problems: list[str]


class RunFolder:
    """The records of one run of one suite version. Use ``RunFolder.open``."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._by_key: dict[str, Record] = {}

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], manifest: Manifest | None = None, *, create: bool = False
    ) -> RunFolder:
        """Open the folder ``path``; with a manifest it must be of its suite and version.

        With ``create`` (needs a manifest) the folder is made where it is missing, and tried for writing;
        in an existing folder the manifest's asked cells are added to those it already lists.

        Raises:
            UserError: there is no usable folder, it is of another schema, suite or suite version, holds a
                rehearsal where results are asked for or the reverse, or it cannot be written.
        """
        path = Path(path)
        if create:
            if manifest is None:
                raise TypeError("RunFolder.open(create=True) needs a manifest")
            with os_errors(path, "write results there"):
                return cls(path, _create(path, manifest))
        stored = _read_manifest(path)
        if manifest is not None:
            _may_be_extended(path, stored, manifest)
        return cls(path, stored)

    def records(self) -> list[Record]:
        """The undamaged records in file order; where a key is repeated the last one counts."""
        return self.read().records

    def append(
        self,
        record: Record,
        correct: Mapping[str, ArrayLike],
        predictions: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Add a finished cell and its outcomes, arrays (samples,); the stored record holds their hash.

        ``correct`` has a boolean or 0/1 array per task of accuracy. ``predictions`` has, by the names
        ``TASK@prediction`` and ``TASK@reference``, the numbers of every task of Spearman's rho and, as far as
        they are to be kept, the classes of the other tasks, ``TASK@ranked`` and ``TASK@ranked_norm`` too.

        Raises:
            UserError: the record belongs to another suite version, the arrays do not agree with it, or the
                disk refuses.
        """
        if (record.suite, record.suite_version) != (self.manifest.suite, self.manifest.suite_version):
            raise UserError(f"record {record.key}: {_foreign(record, self.manifest)}")
        try:
            data = encode(checked(record, correct, predictions or {}))
        except UserError as error:
            raise UserError(f"record {record.key}: {error}") from error
        record = record.sealed(hashlib.sha256(data).hexdigest())
        line = record.to_json().encode() + b"\n"
        with os_errors(self.path, "write results there"):
            refuse_link(self.path / "samples")
            write_atomically(self._samples_file(record.key), data)
            with locked(self.path / "records.jsonl", "ab+") as file:
                self._refuse_endless(file)
                _drop_torn_line(file)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._by_key[record.key] = record

    def samples(self, key: str) -> Samples:
        """What the cell ``key`` did on every test sample.

        Raises:
            UserError: the folder has no such record, or its file is missing, damaged, holds a pickle, or
                disagrees with the record.
        """
        data = self.samples_bytes(key)
        try:
            return decode(data, self._by_key[key])
        except UserError as error:
            raise UserError(f"{self._samples_file(key)}: {error}") from error

    def samples_bytes(self, key: str) -> bytes:
        """The file of samples of the record ``key`` as it is; raises as ``samples`` does."""
        if key not in self._by_key:
            self.read()
        if key not in self._by_key:  # only keys of valid records pass, so none leads out of the folder
            raise UserError(f"{self.path}: holds no record with key {key!r}")
        with os_errors(self._samples_file(key), "be read as per-sample correctness"):
            refuse_link(self.path / "samples")
            return read_bounded(self._samples_file(key), largest(self._by_key[key]))

    def _samples_file(self, key: str) -> Path:
        return self.path / "samples" / f"{key}.npz"

    def read(self) -> Reading:
        """The records, and what is wrong with the lines of ``records.jsonl``.

        Raises:
            UserError: ``records.jsonl`` cannot be read, or nearly all of it is damaged.
        """
        self._by_key, problems = {}, []
        with os_errors(self.path, "read records.jsonl"), locked(self.path / "records.jsonl", "rb") as file:
            self._refuse_endless(file)
            for number, line in enumerate(_lines(file), start=1):
                if problem := self._take(line):
                    problems.append(f"records.jsonl:{number}: {problem}")
                if len(problems) > _MAX_PROBLEMS:
                    raise UserError(
                        f"{self.path}: records.jsonl has more than {_MAX_PROBLEMS} damaged lines, "
                        f"the first is {problems[0]}; restore it"
                    )
        return Reading(list(self._by_key.values()), problems)

    def _refuse_endless(self, file: BinaryIO) -> None:
        if os.fstat(file.fileno()).st_size > _MAX_RECORDS:
            raise UserError(f"{self.path}: records.jsonl is larger than {_MAX_RECORDS} bytes; restore it")

    def _take(self, line: bytes) -> str | None:
        """Take one line in; return what is wrong with it."""
        if len(line) > _MAX_LINE:
            return f"is longer than {_MAX_LINE} bytes; skipped"
        if not line.endswith(b"\n"):
            return "unfinished last line, from a kill; skipped"
        try:
            record = self._parse(line)
        except UserError as error:
            return f"{error}; skipped"
        repeated = self._by_key.pop(record.key, None) is not None
        self._by_key[record.key] = record
        return f"repeats key {record.key}; the last one counts" if repeated else None

    def _parse(self, line: bytes) -> Record:
        record = Record.from_json(line)
        if (record.suite, record.suite_version) != (self.manifest.suite, self.manifest.suite_version):
            raise UserError(_foreign(record, self.manifest))
        if read_apart(record, self.manifest):
            raise UserError("is of a suite that reads other tasks, data, models or prompts than the folder's")
        return record


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines with their line breaks, of one that is too long its beginning."""
    while line := file.readline(_MAX_LINE + 1):
        rest = line
        while len(rest) > _MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(_MAX_LINE + 1)
        yield line


def read_apart(one: Record | Manifest, other: Record | Manifest) -> bool:
    """Whether both tell what their suite reads, and it is not the same."""
    return None not in (both := {one.suite_sha256, other.suite_sha256}) and len(both) > 1


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
    whole = 0
    while line := file.readline(_MAX_LINE):
        whole = file.tell() if line.endswith(b"\n") else whole
    file.truncate(whole)


def _create(path: Path, manifest: Manifest) -> Manifest:
    refuse_link(path / "samples")
    (path / "samples").mkdir(parents=True, exist_ok=True)
    with locked(path / "records.jsonl", "ab+") as file:  # one process at a time makes the manifest
        if (path / "manifest.json").exists():
            stored = _read_manifest(path)
            _may_be_extended(path, stored, manifest)
            manifest = _with_cells(stored, manifest)
            if manifest == stored:
                return stored
        elif file.tell():
            raise UserError(f"{path}: holds records without a manifest.json; choose another --out")
        data = json.dumps(json.loads(manifest.to_json()), indent=2, sort_keys=True)
        write_atomically(path / "manifest.json", data.encode() + b"\n")
    return manifest


def _with_cells(stored: Manifest, manifest: Manifest) -> Manifest:
    """``stored`` with the cells that ``manifest`` asks for beside its own."""
    known = {cell.key for cell in stored.cells}
    added = [cell.model_dump(exclude_unset=True) for cell in manifest.cells if cell.key not in known]
    if not added:
        return stored
    cells = [cell.model_dump(exclude_unset=True) for cell in stored.cells] + added
    return stored.model_copy(update={"asked": {**stored.asked, "cells": cells}})


def _read_manifest(path: Path) -> Manifest:
    file = path / "manifest.json"
    with os_errors(path, "read manifest.json"):
        if path.is_dir() and not os.path.lexists(file):
            raise UserError(f"{path}: is not a folder of results, it has no manifest.json; check the path")
        data = read_bounded(file, _MAX_MANIFEST)
    try:
        return Manifest.from_json(data)
    except UserError as error:
        raise UserError(f"{file}: {error}; choose another --out") from error


def _may_be_extended(path: Path, stored: Manifest, asked: Manifest) -> None:
    if (stored.suite, stored.suite_version) != (asked.suite, asked.suite_version):
        raise UserError(
            f"{path}: holds results of {stored.suite} version {stored.suite_version}, "
            f"asked for {asked.suite} version {asked.suite_version}; choose another --out"
        )
    if stored.rehearsal != asked.rehearsal:
        kinds = {True: "a rehearsal", False: "results"}
        held, asked_for = kinds[stored.rehearsal], kinds[asked.rehearsal]
        raise UserError(f"{path}: holds {held}, asked for {asked_for}; choose another --out")
    if read_apart(stored, asked):
        raise UserError(
            f"{path}: its results come from another {stored.suite}, which reads other tasks, data, models or "
            "prompts; choose another --out"
        )
