"""Merged T5 models are fusion-bench's; flattened TIES counts the tied embedding as often as it does there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from epmq.merging import merge
from epmq.models.t5 import TIED, tower
from tests.fixtures.tiny_t5 import experts, tiny_t5, weights
from tests.oracles.test_fusion_bench import ALGORITHMS, theirs


def models(count: int) -> tuple[Any, dict[str, Any]]:
    """A T5 that is mostly embedding, with a quieter embedding in its experts, and the experts."""
    base = tiny_t5(vocab_size=400)
    found = {}
    for name, tensors in experts(base, [f"task{i}" for i in range(count)], spread=0.05).items():
        tensors["shared.weight"] = base.shared.weight + 0.3 * (tensors["shared.weight"] - base.shared.weight)
        found[name] = copy.deepcopy(base)
        missing, unexpected = found[name].load_state_dict(tensors, strict=False)
        assert set(missing) == set(TIED)
        assert not unexpected
    return base, found


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("count", [2, 8])
def test_the_merge_is_fusion_benchs(name: str, count: int) -> None:
    algorithm, their_options, our_options = ALGORITHMS[name]
    base, tuned = models(count)
    method = name.split(",")[0]
    tied = {"multiplicity": tower(base).multiplicity} if method == "ties" else {}
    ours = merge(method, weights(base), [weights(x) for x in tuned.values()], **our_options, **tied)
    expected = theirs(algorithm(**their_options), base, tuned)
    assert set(expected) == {*ours, *TIED}
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-6)
    for copied in TIED:
        torch.testing.assert_close(ours["shared.weight"], expected[copied], rtol=1e-6, atol=1e-6)


def test_counting_the_embedding_once_is_another_merge() -> None:
    base, tuned = models(2)
    states = [weights(x) for x in tuned.values()]
    once = merge("ties", weights(base), states)
    thrice = merge("ties", weights(base), states, multiplicity={"shared.weight": 3})
    assert any(not torch.equal(once[key], thrice[key]) for key in once)
