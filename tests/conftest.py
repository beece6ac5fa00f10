"""Holds for every test: no network, reproducible examples, and a check on the global random states."""

from __future__ import annotations

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)

import pickle
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

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
