"""What the command line says about bad input."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cli import main

Output = pytest.CaptureFixture[str]


def complaint(capsys: Output, *command: str | Path) -> str:
    """The one line that a failing command prints."""
    status = main([str(word) for word in command])
    said = capsys.readouterr()
    assert status == 2, said
    assert said.out == ""
    assert said.err.startswith("epmq: error: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert "Traceback" not in said.err
    assert len(said.err) < 700, "a line that nobody reads to its end"
    return said.err.removeprefix("epmq: error: ").strip()


def refused(capsys: Output, suite: Path, out: Path, *options: str) -> str:
    """What `epmq run` says, having written nothing."""
    text = complaint(capsys, "run", suite, "--out", out, *options)
    assert not out.exists()
    return text
