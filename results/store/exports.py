"""The checkpoints that were written of a folder's cells, by hash: ``exports.jsonl``, a line each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from results.store.files import locked, os_errors, read_bounded
from results.store.records import Key, Record, Sha256, complaint

FILE = "exports.jsonl"
_MAX = 1 << 24  # bytes


class Export(BaseModel):
    """A checkpoint of the cell ``key``: the record it is tied to, its format, and its weights by hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Key
    record_sha256: Sha256
    format: Literal["compressed-tensors", "dense", "epmq"]
    weights_sha256: Sha256


def add(folder: Path, export: Export) -> None:
    """Name an export in a results folder, once.

    Raises:
        UserError: the folder cannot be written.
    """
    line = export.model_dump_json().encode() + b"\n"
    with os_errors(folder, f"write {FILE} there"), locked(folder / FILE, "ab+") as file:
        file.seek(0)
        held = file.read(_MAX)
        if line in held.splitlines(keepends=True):
            return
        if held and not held.endswith(b"\n"):  # from a kill
            file.truncate(held.rfind(b"\n") + 1)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def problems(folder: Path, records: list[Record]) -> tuple[int, list[str]]:
    """How many lines there are, and what is wrong with each that names no record of the folder as it is.

    Raises:
        UserError: the file is there and cannot be read.
    """
    if not os.path.lexists(folder / FILE):
        return 0, []
    with os_errors(folder, f"read {FILE}"):
        lines = read_bounded(folder / FILE, _MAX).splitlines()
    known = {record.key: record.record_sha256 for record in records}
    return len(lines), list(_wrong(lines, known))


def _wrong(lines: list[bytes], known: dict[str, str | None]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            export = Export.model_validate_json(line)
        except ValidationError as error:
            yield f"{FILE}:{number}: {complaint(error)}"
            continue
        if export.key not in known:
            yield f"{FILE}:{number}: names cell {export.key}, which the folder does not hold"
        elif export.record_sha256 != known[export.key]:
            yield f"{FILE}:{number}: is of another record of cell {export.key} than the folder's"
