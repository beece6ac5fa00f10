"""What a refinement may spend, and how: every axis a recorded field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from epmq.errors import UserError, choose


@dataclass(frozen=True)
class Budget:
    """Axes of :func:`epmq.refinement.descent.descend`.

    Attributes:
        steps: of Adam (Kingma & Ba 2015); 0 changes nothing.
        batch: samples a task and step. All tasks are in every step and weigh alike.
        learning_rate: of weights, biases and norms, at its peak.
        scale_rate: of the logarithms of quantisation scales, so it is relative to the scale.
        warmup: steps of linear rise to the peak; then half a cosine falls to 0.
        held_out: share of every task's samples that no gradient sees. Their loss, measured twenty times, says
            which state is kept.
        intermediate: weight of the blocks' class tokens as further terms, each the squared distance to the
            expert's relative to the expert's mean square, meaned over blocks; for image towers.
        top: of a language model's distributions, so many of the expert's likeliest tokens are kept at every
            position; the rest counts as one outcome.
        accumulate: parts that a task's batch is split into, for memory. No number but rounding changes.
        checkpointing: whether blocks are computed again in the backward pass, for memory. Likewise.
        autocast: ``"bfloat16"`` products in mixed precision, or ``"none"``.
    """

    steps: int = 300
    batch: int = 8
    learning_rate: float = 1e-3
    scale_rate: float = 3e-3
    warmup: int = 20
    held_out: float = 0.2
    intermediate: float = 1.0
    top: int = 64
    accumulate: int = 1
    checkpointing: bool = False
    autocast: Literal["none", "bfloat16"] = "none"

    def __post_init__(self) -> None:
        choose("autocast", self.autocast, ("none", "bfloat16"))
        for name, least in {"steps": 0, "batch": 1, "warmup": 0, "top": 1, "accumulate": 1}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)} is out of range; give {least} or more")
        for name in ("learning_rate", "scale_rate", "intermediate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range; give a finite number, 0 or more"
                )
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out {self.held_out} is out of range; give a share between 0 and 1")
        if self.batch % self.accumulate:
            raise UserError(
                f"accumulate {self.accumulate} does not divide a batch of {self.batch}; give a divisor of it"
            )

    def split(self, task: str, samples: int) -> tuple[int, int]:
        """Samples to learn from and samples held out, at least one of each.

        Raises:
            UserError: there are fewer than two.
        """
        if samples < 2:
            raise UserError(
                f"task {task!r} has {samples} calibration sample, and a refinement holds one out; "
                "give 2 or more"
            )
        held = min(samples - 1, max(1, round(samples * self.held_out)))
        return samples - held, held
