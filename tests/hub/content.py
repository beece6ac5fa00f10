"""What the replica serves: ``build`` and ``build_text`` write repositories of suites into a folder, once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from benchmarks.suites import forms
from benchmarks.suites import load as suites
from benchmarks.suites.forms import PACKAGE
from results.store.files import locked

SUITE = "clip-vit-l14-20"  # the suite that has every task of CLIP's
PROMPTS = PACKAGE / "prompts" / "glue8"  # what the text models are taught to answer
HERE = Path(__file__).parent
MODULES = (
    "checkpoints",
    "data",
    "images",
    "layouts",
    "models",
    "repositories",
    "tokenizer",
)  # what writes the images' part
TEXT_MODULES = (
    "checkpoints",
    "images",
    "layouts",
    "models",
    "text_data",
    "text_models",
    "text_repositories",
    "text_tokenizer",
)


def build(folder: Path) -> Path:
    """Writes the content of the CLIP suites below ``folder``, unless it is there, and returns where it is.

    Everything follows from the bundled suites and this package's code; a change in either makes another
    content, beside the old.
    """

    def write(home: Path) -> None:
        from tests.hub import repositories  # loads torch, which content that is there does not need

        repositories.write(home, suites.load_clip(SUITE).tasks)

    sources = [*modules(MODULES), *forms.TASKS.glob("*.json"), forms.FOLDER / f"{SUITE}.json"]
    return _once(folder, sources, write)


def build_text(folder: Path) -> Path:
    """The same for the GLUE suites, full experts and adapters, and for causal language models."""

    def write(home: Path) -> None:
        from tests.hub import text_repositories

        text_repositories.write(home)

    return _once(folder, [*modules(TEXT_MODULES), *PROMPTS.glob("*.yaml")], write)


def shared(factory: pytest.TempPathFactory) -> Path:
    """A folder for content that all of the tests' workers, and all of their modules, have in common."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "hub"


def modules(names: Iterable[str]) -> list[Path]:
    return [HERE / f"{name}.py" for name in names]


def _once(folder: Path, sources: Iterable[Path], write: Callable[[Path], None]) -> Path:
    """What ``write`` writes, below ``folder`` under the hash of what it is made from."""
    made_from = b"\0".join(file.read_bytes() for file in sorted(sources))
    home = folder / hashlib.sha256(made_from).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", "ab+"):  # a second process waits for the first
        if not home.is_dir():
            unfinished = Path(tempfile.mkdtemp(dir=folder))
            write(unfinished)
            unfinished.rename(home)
    return home
