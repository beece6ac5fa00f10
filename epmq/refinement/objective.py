"""How far a model's outputs are from those of each task's expert; no label is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from epmq.models.tower import Tower


class Objective(Protocol):
    """What is kept of an expert's pass over a batch, and a model's loss against it."""

    @property
    def intermediate(self) -> float:
        """The weight of what is between blocks; 0 where nothing is."""
        ...

    def teach(self, output: Tensor, states: list[Tensor], batch: Any) -> dict[str, Tensor]:
        """What to keep of the expert, sample by sample along the first axis."""
        ...

    def distance(self, output: Tensor, taught: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The distance that counts, ``(n,)``."""
        ...

    def between(self, states: list[Tensor], taught: Mapping[str, Tensor]) -> Tensor:
        """Further terms on what is between blocks, ``(n,)``."""
        ...


def outputs(
    tower: Tower, batch: Any, *, states: bool = False, recompute: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """What the head gives, and the first token ``(n, width)`` of what every block gives, where asked for.

    ``recompute``: activations inside blocks are not kept for the backward pass but computed again.
    """
    state, seen = tower.stem(batch), []
    for block in tower.blocks:
        state = checkpoint(block, state, use_reentrant=False) if recompute else block(state)
        if states:
            seen.append(state[:, 0])
    output: Tensor = tower.head(state)
    return output, seen


@dataclass(frozen=True)
class FeatureDistance:
    """Squared distance of unit-norm features ``(n, dim)``; what zero-shot heads read.

    ``intermediate`` is the weight of the blocks' class tokens, each block's squared distance relative to the
    mean square of the expert's.
    """

    intermediate: float = 0.0

    def teach(self, output: Tensor, states: list[Tensor], batch: Any) -> dict[str, Tensor]:
        """Unit features, and the class tokens ``(n, blocks, width)`` where they count."""
        found = {"features": F.normalize(output.float(), dim=-1)}
        return found | ({"states": torch.stack(states, 1).float()} if self.intermediate else {})

    def distance(self, output: Tensor, taught: Mapping[str, Tensor], batch: Any) -> Tensor:
        """``||f / |f| - g / |g|||^2``, ``(n,)``, from 0 to 4."""
        apart: Tensor = F.normalize(output.float(), dim=-1) - taught["features"]
        return apart.square().sum(-1)

    def between(self, states: list[Tensor], taught: Mapping[str, Tensor]) -> Tensor:
        """The mean over blocks of the relative squared distances, ``(n,)``."""
        wanted = taught["states"]
        apart = (torch.stack(states, 1).float() - wanted).square().sum(-1)
        return (apart / wanted.square().sum(-1).mean(0)).mean(1)


@dataclass(frozen=True)
class AnswerDivergence:
    """Kullback-Leibler divergence from the expert's to the model's next-token distribution, over the answer.

    Of the expert's distribution the ``top`` likeliest tokens are kept, the others are one outcome: by the
    data processing inequality the divergence is never above that of the whole distributions.
    """

    top: int = 64
    intermediate: float = 0.0

    def teach(self, output: Tensor, states: list[Tensor], batch: Any) -> dict[str, Tensor]:
        """Probabilities ``(n, t, top)`` and ids of the likeliest tokens, and the answer's positions."""
        likely = output.float().softmax(-1).topk(min(self.top, output.shape[-1]), dim=-1)
        return {"share": likely.values, "token": likely.indices, "counts": answer_positions(batch)}

    def distance(self, output: Tensor, taught: Mapping[str, Tensor], batch: Any) -> Tensor:
        """In nats, the mean over the answer's positions, ``(n,)``.

        Samples may have been padded to more positions when they were taught than they are here.
        """
        share, token, counts = (taught[name][:, : output.shape[1]] for name in ("share", "token", "counts"))
        logs = output.float().log_softmax(-1).gather(-1, token)
        rest, others = _rest(share), _rest(logs.exp())
        # torch.special.xlogy(p, p / q) without its infinite slope where p is 0
        found = (torch.special.xlogy(share, share) - share * logs).sum(-1)
        found = found + torch.special.xlogy(rest, rest) - rest * others.clamp(min=SMALLEST).log()
        mean: Tensor = (found * counts).sum(1) / counts.sum(1)
        return mean

    def between(self, states: list[Tensor], taught: Mapping[str, Tensor]) -> Tensor:
        """None: answers are read from the last state alone."""
        return taught["share"].new_zeros(len(taught["share"]))


SMALLEST = 1e-12  # a probability below it counts as this much


def _rest(shares: Tensor) -> Tensor:
    return (1 - shares.sum(-1)).clamp(min=0)


def answer_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """Positions ``(n, t)`` whose next token belongs to the answer, bool.

    Those of an encoder-decoder's decoder; of a causal model's sequence, those that ``answer_mask`` marks.
    """
    if "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"].bool()
    return batch["answer_mask"].bool()
