"""Evaluation: per-sample correctness of a tower under a zero-shot head."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.data import Labelled
from epmq.tower import Tower


@torch.inference_mode()
def correct(tower: Tower, head: Tensor, data: Labelled, batch_size: int = 256) -> NDArray[np.bool_]:
    """Whether each sample's most similar class is its label, ``(n,)`` bool.

    The features' norm and the logit scale do not change the arg max and are left out.
    """
    hits = []
    for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
        hits.append((tower(images) @ head.T).argmax(1) == labels)
    return torch.cat(hits).numpy()
