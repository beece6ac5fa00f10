"""Holds for every test: no network, reproducible examples, and a check on the global random states."""

from __future__ import annotations

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # threads that spin for each other cost these small problems 30 times their work
)

import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.run.cells import Cell
    from benchmarks.run.outcome import Outcome
    from benchmarks.workbench.base import Workbench
    from tests.fixtures.tiny_suite import TinySuite, TinyVisual
    from tests.fixtures.tiny_text import TinyText

settings.register_profile("epmq", deadline=None, derandomize=True, database=None)
settings.load_profile("epmq")


def random_states() -> tuple[object, bytes, bytes]:
    """The global states of ``random``, ``numpy.random`` and ``torch``."""
    legacy = pickle.dumps(np.random.get_state())  # noqa: NPY002, the global state is the point
    return random.getstate(), legacy, torch.get_rng_state().numpy().tobytes()


@pytest.fixture(autouse=True)
def _keeps_rng(request: pytest.FixtureRequest) -> Iterator[None]:
    before = random_states()
    yield
    if request.node.get_closest_marker("keeps_rng"):
        assert random_states() == before, "the test changed a global random state"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images and merged weights of tests are not kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPMQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> TinyText:
    """A complete text suite in miniature, written once."""
    from tests.fixtures.tiny_text import write_suite

    return write_suite(tmp_path_factory.mktemp("tiny-text"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinySuite:
    """A complete suite in miniature, written once; tests work on copies or variants of it."""
    import datasets  # a second or two, which only some tests have to wait for

    from tests.fixtures.tiny_suite import write_suite

    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")
    return write_suite(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_visual() -> TinyVisual:
    from tests.fixtures.tiny_suite import make_visual

    return make_visual()


@pytest.fixture
def nothing_is_computed(tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that gets as far as computing a cell fails."""
    import datasets

    from benchmarks.run import executors

    monkeypatch.setattr(executors, "compute", lambda *_: pytest.fail("a cell was computed"))
    # no data that were loaded before may answer for a file that the test has damaged
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of the cells that are computed during the test, in order."""
    from benchmarks.run import compute, executors

    names: list[str] = []
    original = compute.compute

    def counted(workbench: Workbench, cells: Sequence[Cell]) -> list[Outcome]:
        names.extend(cell.method for cell in cells)
        return original(workbench, cells)

    monkeypatch.setattr(executors, "compute", counted)
    return names
