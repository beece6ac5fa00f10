"""Damaged and hostile result folders: what is done to a whole folder, and what must be said about it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.results_samples import asking, make_cell, make_folder, make_key, make_manifest

NAMES = ("experts", "gptq", "rtn")
PACKED: dict[str, Any] = {"bits_per_weight": 4.25, "packed_bytes": 17}
KEY = make_key("gptq")
Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Hostile:
    """An `edit` of a whole folder, and a regular expression for the complaint; None where it is harmless."""

    name: str
    edit: Edit
    complaint: str | None


def make_whole(path: Path) -> None:
    """A folder that verifies: the experts and two methods, the first of them the one that is damaged."""
    full: dict[str, Any] = {"kind": "control", "merge": None, "bits": None, "bits_per_weight": None}
    experts = make_cell("experts", {"digits": 1.0, "shapes": 0.8}, method="experts", target=None, **full)
    cells = [experts, make_cell("gptq", **PACKED), make_cell("rtn", {"digits": 0.7}, method="rtn", **PACKED)]
    make_folder(path, *cells, asked=asking(*cells))


# -- records.jsonl


def lines(edit: Callable[[list[bytes]], list[bytes]]) -> Edit:
    """Edit the lines of records.jsonl, of which the second is that of KEY."""

    def apply(path: Path) -> None:
        file = path / "records.jsonl"
        file.write_bytes(b"".join(edit(file.read_bytes().splitlines(keepends=True))))

    return apply


def second(edit: Callable[[bytes], bytes]) -> Edit:
    return lines(lambda found: [found[0], edit(found[1]), *found[2:]])


def fields(**changes: object) -> Edit:
    """Change fields of the second record."""
    return second(lambda line: json.dumps({**json.loads(line), **changes}).encode() + b"\n")


def literal(field: str, text: str) -> Edit:
    """Put text, which need not be JSON, where a number was."""
    mark = '"@@@"'
    return second(
        lambda line: (json.dumps({**json.loads(line), field: "@@@"}).replace(mark, text) + "\n").encode()
    )


def samples_of(task: str, count: int = 200) -> Edit:
    """Name or count the samples of the second record's only task."""
    return fields(tasks={task: {"metric": "accuracy", "value": 0.8, "samples": count}}, average=0.8)


RECORDS = [
    Hostile("line cut short", second(lambda line: line[:100] + b"\n"), "records.jsonl:2: Invalid JSON"),
    Hostile("last line torn", lines(lambda x: [*x[:2], x[2][:-9]]), "jsonl:3: unfinished last line"),
    Hostile("line twice", lines(lambda x: [*x, x[1]]), "jsonl:4: repeats key .*; the last one counts"),
    Hostile("other order", lines(lambda x: x[::-1]), None),
    Hostile("CRLF", lines(lambda x: [line[:-1] + b"\r\n" for line in x]), None),
    Hostile(
        "spaces", second(lambda line: json.dumps(json.loads(line), indent=None).encode() + b"  \n"), None
    ),
    Hostile("BOM", lines(lambda x: [b"\xef\xbb\xbf" + x[0], *x[1:]]), "jsonl:1: Invalid JSON"),
    Hostile("UTF-16", second(lambda x: x[:-1].decode().encode("utf-16") + x[-1:]), "jsonl:2: Invalid JSON"),
    Hostile("not UTF-8", second(lambda line: line.replace(b"ties", b"t\xefes")), "jsonl:2: Invalid JSON"),
    Hostile("lone surrogate", second(lambda x: x.replace(b'"ties"', b'"\\ud800"')), "jsonl:2: Invalid"),
    Hostile("NUL bytes", second(lambda line: bytes(len(line)) + b"\n"), "jsonl:2: Invalid JSON"),
    Hostile("NaN", literal("average", "NaN"), "jsonl:2: Invalid JSON"),
    Hostile("Infinity", literal("packed_bytes", "-Infinity"), "jsonl:2: Invalid JSON"),
    Hostile("infinite", literal("average", "1e999"), "jsonl:2: holds a number that is not finite"),
    Hostile("huge float", fields(seconds={"merge": 1e300}), "seconds.merge: .*less than or equal"),
    Hostile("huge integer", literal("packed_bytes", "9" * 4000), "packed_bytes: .*less than or equal"),
    Hostile("longer integer", literal("packed_bytes", "9" * 100_000), "jsonl:2: Invalid JSON"),
    Hostile("number as text", fields(average="0.7"), "average: Input should be a valid number"),
    Hostile("truth as number", fields(seed=True), "seed: Input should be a valid integer"),
    Hostile("object as list", fields(tasks=[]), "tasks: Input should be an object"),
    Hostile("null", second(lambda _: b"null\n"), "jsonl:2: Input should be an object"),
    Hostile("no such field", fields(**{"<b>\x1b[2J": 1}), r"<b>\?\[2J: Extra inputs are not permitted"),
    Hostile("deep", second(lambda _: b'{"schema":2,"axes":' + b"[" * 10**6 + b"\n"), "jsonl:2: .*recursion"),
    Hostile("long line", second(lambda x: b" " * 9_000_000 + x), "jsonl:2: is longer than 8388608 bytes"),
    Hostile("damaged a thousand times", lines(lambda x: x + [b"{}\n"] * 1001), "more than 1000 damaged"),
    Hostile("key up", fields(key="../../../../etc/passwd"), "key: String should match pattern"),
    Hostile("key absolute", fields(key="/etc/passwd"), "key: String should match pattern"),
    Hostile("key of another record", fields(key=make_key("rtn")), "jsonl:3: repeats key"),
    Hostile("task up", samples_of("../../digits"), "must not read as a path"),
    Hostile("task absolute", samples_of("/etc/passwd"), "must not read as a path"),
    Hostile("task NUL", samples_of("digits\x00.npy"), "must hold printable characters only"),
    Hostile("task of many lines", samples_of("a\n| b"), "must hold printable characters only"),
    Hostile("task with an array's name", samples_of("digits@reference"), "must not hold @"),
    Hostile("terminal commands", fields(method="\x1b]0;title\x07"), "printable characters only"),
    Hostile("text that runs backwards", fields(method="\u202eqtpg"), "printable characters only"),
    Hostile("setting of many lines", fields(axes={"layers": "*\n\n# x"}), "axes.layers"),
    Hostile("another suite", fields(suite="toys"), "belongs to toys version 1, the folder to toy"),
    Hostile("another suite version", fields(suite_version=7), "belongs to toy version 7"),
    Hostile("older schema", fields(schema=1), "is of schema 1, the folder of schema 2"),
    Hostile("schema to come", fields(schema=3), "schema: must be a whole number from 1 to 2"),
    Hostile("better average", fields(average=0.9), "average 0.9 is not the mean of the tasks"),
    Hostile("better value", fields(tasks={"digits": {"value": 1.0, "samples": 200}}, average=1.0), "holds"),
    Hostile("more samples than memory", samples_of("digits", 10**15), "less than or equal"),
    Hostile("edited objective", second(lambda x: x.replace(b"0.25", b"0.24")), "SHA-256 is .*, recorded"),
]


# -- samples


def entries(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{n: np.asarray(array) for n, array in arrays.items()})
    return buffer.getvalue()


def samples(content: bytes | Callable[[bytes], bytes]) -> Edit:
    def apply(path: Path) -> None:
        file = path / "samples" / f"{KEY}.npz"
        file.write_bytes(content if isinstance(content, bytes) else content(file.read_bytes()))

    return apply


class _Executed:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("executed",)


def archive(*found: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as opened:
        for name, content in found:
            opened.writestr(name, content)
    return buffer.getvalue()


def npy(shape: str, dtype: str = "|u1", content: bytes = b"\x00") -> bytes:
    """An array file whose header may declare what its content is not."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def pickled() -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.array([_Executed()], dtype=object), allow_pickle=True)
    return archive(("digits.npy", content.getvalue()), ("shapes.npy", content.getvalue()))


def bomb(_: bytes) -> bytes:
    """A quarter of a gigabyte of zeros, in a quarter of a megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        with opened.open("digits.npy", "w") as entry:
            entry.write(npy("(200,)"))
            for content in [bytes(1 << 20)] * 256:
                entry.write(content)
        opened.writestr("shapes.npy", npy("(200,)", content=bytes(200)))
    return buffer.getvalue()


def with_password(data: bytes) -> bytes:
    """Set the flag of an encrypted entry in the archive's directory."""
    entry = b"PK\x01\x02\x14\x03\x14\x00"
    return data.replace(entry + b"\x00", entry + b"\x01")


def small_bomb(_: bytes) -> bytes:
    """A little more than what is declared, within the size that an archive may have."""
    return archive(("digits.npy", npy("(200,)", content=bytes(10**6))), ("shapes.npy", npy("(200,)")))


def linked(target: Path | str) -> Edit:
    def apply(path: Path) -> None:
        file = path / "samples" / f"{KEY}.npz"
        file.unlink()
        file.symlink_to(path.parent / target)

    return apply


def from_experts(path: Path) -> None:
    shutil.copy(path / "samples" / f"{make_key('experts')}.npz", path / "samples" / f"{KEY}.npz")


def folder_instead(name: str) -> Edit:
    def apply(path: Path) -> None:
        (path / name).unlink()
        (path / name).mkdir()

    return apply


RIGHT, OTHER = np.arange(200) < 160, np.arange(200) < 120
UNREADABLE = "cannot be read as per-sample correctness"

SAMPLES = [
    Hostile("samples missing", lambda x: (x / "samples" / f"{KEY}.npz").unlink(), "No such file"),
    Hostile("samples truncated", samples(lambda x: x[:-40]), UNREADABLE),
    Hostile("samples of another cell", from_experts, "accuracy 1.0, its record"),
    Hostile("a pickle instead", samples(pickle.dumps(_Executed())), UNREADABLE),
    Hostile("pickles inside", samples(pickled()), f"{UNREADABLE}.*not declared as one row of numbers"),
    Hostile("zip bomb", samples(bomb), "is larger than"),
    Hostile("small zip bomb", samples(small_bomb), "goes on after its 200 samples"),
    Hostile("array of a petabyte", samples(archive(("digits.npy", npy("(100000000000,)", "<f8")))), "shape"),
    Hostile("header of Python", samples(archive(("digits.npy", npy("(" * 9000)))), UNREADABLE),
    Hostile("wrong shape", samples(entries(digits=RIGHT[:-1], shapes=OTHER)), r"shape \(199,\), expected"),
    Hostile("two rows", samples(entries(digits=[RIGHT, RIGHT], shapes=OTHER)), "not declared as one row"),
    Hostile("not 0 and 1", samples(entries(digits=2 * RIGHT, shapes=OTHER)), "values other than 0 and 1"),
    Hostile("floats", samples(entries(digits=RIGHT * np.nan, shapes=OTHER)), "values other than 0 and 1"),
    Hostile("strings", samples(entries(digits=["x"] * 200, shapes=OTHER)), "not declared as one row"),
    Hostile("array too many", samples(entries(digits=RIGHT, shapes=OTHER, more=[1])), "holds arrays"),
    Hostile("path in the archive", samples(archive(("../../out.npy", npy("(1,)")))), "holds arrays"),
    Hostile("array twice", samples(lambda x: _twice(x)), "holds arrays"),
    Hostile(
        "ten thousand arrays", samples(archive(*[(f"{n}", b"") for n in range(10**4)])), "is larger than"
    ),
    Hostile(
        "other compression",
        samples(archive(("digits.npy", npy("(200,)")), ("shapes.npy", b""), compression=zipfile.ZIP_LZMA)),
        "than deflate",
    ),
    Hostile("password", samples(with_password), UNREADABLE),
    Hostile("same accuracy, other samples", samples(entries(digits=RIGHT[::-1], shapes=OTHER)), "SHA-256 is"),
    Hostile("link to a file outside", linked("secret"), "it is a link"),
    Hostile("link to a device without end", linked("/dev/zero"), "it is a link"),
    Hostile("folder for a file of samples", folder_instead(f"samples/{KEY}.npz"), "Is a directory"),
]


def _twice(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        found = [(name, opened.read(name)) for name in opened.namelist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in found:
            opened.writestr(name, content)
        opened.filelist.append(opened.filelist[0])
    return buffer.getvalue()


# -- the folder and its manifest


def manifest(content: bytes) -> Edit:
    return lambda path: (path / "manifest.json").write_bytes(content)


def asked(**changes: object) -> Edit:
    def apply(path: Path) -> None:
        stored = json.loads((path / "manifest.json").read_bytes())
        (path / "manifest.json").write_text(json.dumps({**stored, **changes}))

    return apply


def moved_out(name: str) -> Edit:
    """Replace a part of the folder by a link to where it now is, outside."""

    def apply(path: Path) -> None:
        (path / name).rename(path.parent / "elsewhere")
        (path / name).symlink_to(path.parent / "elsewhere")

    return apply


def pipe(name: str) -> Edit:
    def apply(path: Path) -> None:
        (path / name).unlink()
        os.mkfifo(path / name)

    return apply


def sparse(name: str) -> Edit:
    """A file of a terabyte that takes no room."""
    return lambda path: os.truncate(path / name, 10**12)


def figures_outside(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    (path.parent / "elsewhere" / "accuracy.csv").touch()
    (path / "figures").symlink_to(path.parent / "elsewhere")


def file_for_samples(path: Path) -> None:
    shutil.rmtree(path / "samples")
    (path / "samples").touch()


def search_outside(path: Path) -> None:
    (path / "figures").mkdir()
    (path / "figures" / "accuracy.csv").touch()
    (path / "tuning.json").symlink_to(path.parent / "secret")


CELL = {"key": "0" * 16, "merge": None, "method": "m", "target": None, "bits": 4}

FOLDERS = [
    Hostile("no manifest", lambda x: (x / "manifest.json").unlink(), "has no manifest.json"),
    Hostile("empty manifest", manifest(b""), "manifest.json: Invalid JSON"),
    Hostile("manifest cut short", manifest(make_manifest().to_json()[:-5].encode()), "Invalid JSON"),
    Hostile("web page", manifest(b"<html><script>alert(1)</script></html>"), "Invalid JSON"),
    Hostile("list", manifest(b"[1, 2]"), "Input should be an object, not list"),
    Hostile("deep manifest", manifest(b'{"schema":2,"asked":' + b'{"a":' * 10**6), "recursion limit"),
    Hostile("manifest of another suite", asked(suite="toys"), "belongs to toy version 1, the folder to toys"),
    Hostile("manifest of another version", asked(suite_version=2), "the folder to toy version 2"),
    Hostile("suite up", asked(suite="../../toy"), "suite: must not read as a path"),
    Hostile("infinite option", asked(asked={"anchor": float("inf")}), "Invalid JSON"),
    Hostile(
        "infinite number",
        lambda x: manifest(
            b'{"schema":2,"suite":"toy","suite_version":1,"created":"","asked":{"anchor":1e999}}'
        )(x),
        "not finite",
    ),
    Hostile("cells of no form", asked(asked={"cells": {"a": 1}}), "asked: "),
    Hostile("cell up", asked(asked={"cells": [{**CELL, "key": "../x"}]}), "asked.0.key: "),
    Hostile("nothing asked for", asked(asked={}), "the manifest asks for it 0 times"),
    Hostile("cell asked for twice", asked(asked={"cells": [CELL, CELL]}), "asks for it 0 times"),
    Hostile("manifest without end", sparse("manifest.json"), "larger than"),
    Hostile("records without end", sparse("records.jsonl"), "larger than"),
    Hostile("samples without end", sparse(f"samples/{KEY}.npz"), "larger than"),
    Hostile("records missing", lambda x: (x / "records.jsonl").unlink(), "records.jsonl: No such file"),
    Hostile("folder for the records", folder_instead("records.jsonl"), "Is a directory"),
    Hostile("folder for the manifest", folder_instead("manifest.json"), "Is a directory"),
    Hostile("manifest outside", moved_out("manifest.json"), "it is a link"),
    Hostile("records outside", moved_out("records.jsonl"), "it is a link"),
    Hostile("samples outside", moved_out("samples"), "it is a link"),
    Hostile("pipe for the manifest", pipe("manifest.json"), "not a regular file"),
    Hostile("pipe for the records", pipe("records.jsonl"), "not a regular file"),
    Hostile(
        "file for the samples",
        file_for_samples,
        "Not a directory",
    ),
    Hostile("table outside", lambda x: (x / "table.md").symlink_to(x.parent / "secret"), "it is a link"),
    Hostile(
        "table of its own", lambda x: (x / "table.html").write_text("<script>"), "is not what the records"
    ),
    Hostile("figures outside", figures_outside, "figures: .*it is a link"),
    Hostile("search outside", search_outside, "tuning.json: .*it is a link"),
]

ALL = RECORDS + SAMPLES + FOLDERS
