"""What the replica serves: `build` writes the repositories of the paper's CLIP suites into a folder, once."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from benchmarks import suites

SUITE = "clip-vit-l14-20"  # the suite that has every task
HERE = Path(__file__).parent
MODULES = (
    "checkpoints",
    "data",
    "images",
    "layouts",
    "models",
    "repositories",
    "tokenizer",
)  # what writes it


def build(folder: Path) -> Path:
    """Writes the content below ``folder``, unless it is there, and returns where it is.

    Everything follows from the bundled suites and this package's code; a change in either makes another
    content, beside the old. Two processes may build at once.
    """
    home = folder / _fingerprint()
    if not home.is_dir():
        from tests.hub.repositories import write  # loads torch, which content that is there does not need

        folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder))
        write(unfinished, suites.load(SUITE).tasks)
        try:
            unfinished.rename(home)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return home


def _fingerprint() -> str:
    """Hash of what the content is made from."""
    modules = [HERE / f"{name}.py" for name in MODULES]
    sources = [*modules, *suites.TASKS.glob("*.json"), suites.FOLDER / f"{SUITE}.json"]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in sorted(sources))).hexdigest()[:16]
