"""Every axis of calibration that the paper leaves open, as recorded fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from epmq.errors import UserError, choose

if TYPE_CHECKING:  # the command line describes these axes without waiting for torch
    from epmq.layer.moments import TaskWeight
    from epmq.layer.problem import AnchorScale

Target = Literal["merged", "expert"]
Source = Literal["merged", "quantised", "expert-block", "expert"]
IRRELEVANT = {  # axes that change no number of a target
    "merged": ("mixing", "anchor", "anchor_scale", "teacher"),
    "expert": (),
}


@dataclass(frozen=True)
class Calibration:
    """What a layer is asked to reproduce, on which inputs.

    Attributes:
        target: ``"merged"`` rounds W_m (plain post-training quantisation); ``"expert"`` rounds W* (E-PMQ).
        source: where the inputs X_t come from: the merged model in full precision (``"merged"``), the model
            quantised so far (``"quantised"``), the task's own expert (``"expert"``), or the expert's block on
            what the blocks before it, quantised so far, make (``"expert-block"``, as in RegMean++).
        mixing: a in x~ = (1 - a) x + a x_expert, the input of the experts' targets W_t x~. 0 is reading A
            (the experts' weights on the model's inputs), 1 is reading B (the experts' own features).
        anchor: lambda of the pull towards W_m; only for the expert target.
        anchor_scale: lambda ``"relative"`` to the mean diagonal of sum_t c_t G_t, or ``"absolute"``.
        task_weight: c_t, ``"uniform"`` or ``"frobenius"`` (1 / ||G_t||_F).
        damping: GPTQ's ridge on the Hessian that is rounded in, relative to its mean diagonal; it does not
            touch the centre.
        teacher: whose layers give the targets: the ``"experts"``, or the ``"merged"`` model in full precision
            on its own stream (error compensation without experts, as QEP, arXiv 2504.09629, has it).
        patch_weight: what a token other than the class token counts for in the last block of an image tower,
            whose head reads the class token alone: inputs of the output projection and of the MLP. 1 for all
            alike; FeatCal (arXiv 2605.13030) takes 0.01.
        off_diagonal: factor on the off-diagonal entries of every G_t (RegMean uses 0.95), 1 leaves them.
        recalibrate: ``"bias"`` also shifts every bias so that mean outputs meet the target, ``"none"`` not.
        layers: shell-style pattern of the layers to quantise, over names like ``blocks.0.mlp.c_fc``.
    """

    target: Target = "merged"
    source: Source = "quantised"
    mixing: float = 0.0
    anchor: float = 0.001
    anchor_scale: AnchorScale = "relative"
    task_weight: TaskWeight = "uniform"
    damping: float = 0.01
    teacher: Literal["experts", "merged"] = "experts"
    patch_weight: float = 1.0
    off_diagonal: float = 1.0
    recalibrate: Literal["none", "bias"] = "none"
    layers: str = "*"

    def __post_init__(self) -> None:
        choose("target", self.target, ("merged", "expert"))
        choose("source", self.source, ("merged", "quantised", "expert-block", "expert"))
        choose("anchor_scale", self.anchor_scale, ("relative", "absolute"))
        choose("task_weight", self.task_weight, ("uniform", "frobenius"))
        choose("recalibrate", self.recalibrate, ("none", "bias"))
        choose("teacher", self.teacher, ("experts", "merged"))
        for name in ("mixing", "off_diagonal", "patch_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)} is out of range; give a number from 0 to 1")
        for name in ("anchor", "damping"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range; give a finite number, 0 or more"
                )

    @property
    def follows_experts(self) -> bool:
        """Whether each expert's own stream is walked beside the model's."""
        return self.source == "expert" or (self.target == "expert" and self.mixing > 0)
