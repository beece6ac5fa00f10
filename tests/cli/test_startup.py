"""What starts quickly imports little: no command or import waits for a library that it does not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAVY = ("torch", "numba", "open_clip", "transformers", "datasets", "matplotlib")
REPORT = """
import sys
{body}
print("\\n" + " ".join(sorted(set({heavy!r}) & sys.modules.keys())))
"""
COMMAND = """
from benchmarks.cli.main import main
try:
    main({arguments!r})
except SystemExit as left:
    assert not left.code
"""


def imported(body: str, heavy: tuple[str, ...]) -> list[str]:
    """Which of the ``heavy`` packages a fresh interpreter has imported after running ``body``."""
    script = REPORT.format(body=body, heavy=heavy)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["list"], ["list", "--json"]], ids=" ".join
)
def test_help_and_the_list_wait_for_no_library(arguments: list[str]) -> None:
    assert imported(COMMAND.format(arguments=arguments), (*HEAVY, "scipy")) == []


def test_a_table_waits_for_numpy_and_scipy_only() -> None:
    folder = Path("results", "committed", "runs", "micro-clip-8")
    assert imported(COMMAND.format(arguments=["table", str(folder)]), HEAVY) == []


def test_importing_the_library_waits_for_nothing() -> None:
    body = (
        "import epmq; assert 'quantise' in dir(epmq); epmq.QuantSpec(4); epmq.Calibration(); epmq.UserError"
    )
    assert imported(body, (*HEAVY, "scipy", "numpy", "pydantic")) == []


def test_a_package_that_is_used_is_seen() -> None:
    """The other tests would pass if they looked at the wrong interpreter."""
    assert imported("import epmq; epmq.QuantizedWeight", ("torch", "scipy")) == ["scipy", "torch"]
