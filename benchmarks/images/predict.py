"""Evaluation: what towers predict under a zero-shot head, several towers in one pass over the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.images.decoded import CHUNK, Images
from benchmarks.images.preprocess import Preprocess
from benchmarks.workbench.machine import Machine
from epmq.errors import UserError
from epmq.models.tower import Tower

ACTIVATIONS = 2**29  # bytes that one batch's activations may take on a CPU
SHARE_OF_FREE = 0.25  # the same on a GPU, as a share of its free memory
ALIVE = 4  # widest activations alive at a time in a block: its input, both sides of the MLP, their product


@torch.inference_mode()
def predictions(
    towers: Sequence[Tower],
    head: Tensor,
    images: Images,
    preprocess: Preprocess,
    machine: Machine,
    batch_size: int | None = None,
) -> NDArray[np.int32]:
    """Each tower's most similar class for each sample, ``(towers, n)``.

    The features' norm and the logit scale do not change the arg max and are left out. Logits are float32.
    Without ``batch_size`` it is what memory takes; a batch that does not fit after all is halved.
    """
    found: list[list[Tensor]] = [[] for _ in towers]
    weights = head.float().to(machine.device)
    for chunk in images.chunks():
        size = batch_size or fitting_batch_size(towers[0], preprocess.normalise(chunk[:1]), machine)
        for part in chunk.split(size):
            inputs = preprocess.normalise(part.to(machine.device)).to(getattr(torch, machine.dtype))
            for tower, classes in zip(towers, found, strict=True):
                classes.append((features(tower, inputs).float() @ weights.T).argmax(1).int().cpu())
    return torch.stack([torch.cat(classes) for classes in found]).numpy()


def features(tower: nn.Module, inputs: Tensor) -> Tensor:
    """``tower(inputs)``, in halves where the device's memory does not take it at once.

    Raises:
        UserError: not even one sample fits.
    """
    try:
        found: Tensor = tower(inputs)
    except torch.OutOfMemoryError as error:
        if len(inputs) == 1:
            raise UserError(
                "the device's memory does not take one sample; free some, or use --device cpu"
            ) from error
    else:
        return found
    half = len(inputs) // 2  # outside the handler, which holds on to what the failed pass had allocated
    return torch.cat([features(tower, inputs[:half]), features(tower, inputs[half:])])


def fitting_batch_size(tower: Tower, sample: Tensor, machine: Machine) -> int:
    """Samples ``(1, ...)`` whose activations fit in the memory that a batch may take, 1 to ``CHUNK``."""
    linears = [m for m in tower.blocks[0].modules() if isinstance(m, nn.Linear)]
    widest: int = max(max(m.in_features, m.out_features) for m in linears)
    hidden: Tensor = tower.stem(sample.to(next(tower.parameters())))
    budget = ACTIVATIONS
    if machine.device.type == "cuda":
        budget = int(SHARE_OF_FREE * torch.cuda.mem_get_info(machine.device)[0])
    return max(1, min(CHUNK, budget // (ALIVE * hidden.shape[1] * widest * hidden.element_size())))
