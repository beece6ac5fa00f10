"""Two runs into one folder: the second is told who holds it, and takes over what a dead one left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.run.runner import run
from epmq.errors import UserError
from results.store.claim import NAME, claimed, refuse_held
from results.store.folder import RunFolder
from tests.fixtures.complaints import Output, complaint
from tests.fixtures.tiny_runs import few, snapshot
from tests.fixtures.tiny_suite import TinySuite

HOLD = "import sys\nfrom pathlib import Path\nfrom results.store.claim import claimed\n"
HOLD += "with claimed(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_told_who_holds_the_folder(
    tiny: TinySuite, tmp_path: Path, capsys: Output, nothing_is_computed: None
) -> None:
    out = tmp_path / "out"
    other = holder(out)
    before = snapshot(out)
    said = complaint(capsys, "run", tiny.file, "--out", out)
    assert said.startswith(f"{out}: is being written by process {other.pid} on ")
    assert said.endswith("; wait until it ends, or choose another --out")
    assert snapshot(out) == before
    other.communicate()
    assert list(out.iterdir()) == []
    refuse_held(out)


def test_the_claim_of_a_dead_process_is_taken_over(tiny: TinySuite, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = holder(out)
    other.kill()
    other.communicate()
    assert (out / NAME).read_text().startswith(f"process {other.pid} ")
    run(tiny.suite, few(), out, {})
    assert len(RunFolder.open(out).records()) == 2
    assert not (out / NAME).exists()


def test_the_folder_is_held_while_cells_are_computed(tiny: TinySuite, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []

    def watching(workbench: object, groups: object) -> list[object]:
        seen.append((out / NAME).read_text())
        with pytest.raises(UserError, match=f"is being written by process {os.getpid()} "):
            run(tiny.suite, few(), out, {})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny.suite, few(), out, {}, execute=watching)  # type: ignore[arg-type]
    assert seen
    assert not (out / NAME).exists()
    with claimed(out):
        pass


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_claim_that_is_no_file_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    if kind == "link":
        (out / NAME).symlink_to(tmp_path / "mine")
    else:
        (out / NAME).mkdir()
    for attempt in (refuse_held, lambda folder: claimed(folder).__enter__()):
        with pytest.raises(UserError, match="cannot write results there"):
            attempt(out)
    assert (tmp_path / "mine").read_text() == "mine"
