"""Every axis of calibration that the paper leaves open, as recorded fields."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from epmq.errors import UserError, choose

if TYPE_CHECKING:  # the command line describes these axes without waiting for torch
    from epmq.layer.moments import TaskWeight
    from epmq.layer.problem import AnchorScale

Target = Literal["merged", "expert"]
Source = Literal["merged", "quantised", "expert-block", "expert"]
GUIDED = (
    "mixing",
    "anchor",
    "anchor_scale",
    "anchor_point",
    "anchor_in",
    "teacher",
    "biases",
    "norms",
)  # expert target only
# Axes that joined after results were kept. They are recorded where they are not at their default, so that
# older cells keep their keys.
LATER = ("sequential", "anchor_point", "anchor_in", "asymmetry", "biases", "norms", "patch_scope")


@dataclass(frozen=True)
class Calibration:
    """What a layer is asked to reproduce, on which inputs.

    Attributes:
        target: ``"merged"`` rounds W_m (plain post-training quantisation); ``"expert"`` rounds W* (E-PMQ).
        source: where the inputs X_t come from: the merged model in full precision (``"merged"``), the model
            quantised so far (``"quantised"``), the task's own expert (``"expert"``), or the expert's block on
            what the blocks before it, quantised so far, make (``"expert-block"``, as in RegMean++).
        sequential: what inputs from the model quantised so far have behind them: every layer before them
            (``"group"``), or every block before theirs (``"block"``), so that all layers of a block are
            solved from inputs that were taken before any of them changed.
        mixing: a in x~ = (1 - a) x + a x_expert, the input of the experts' targets W_t x~. 0 is reading A
            (the experts' weights on the model's inputs), 1 is reading B (the experts' own features).
        anchor: lambda of the pull towards the anchor's point; only for the expert target.
        anchor_scale: lambda ``"relative"`` to the mean diagonal of sum_t c_t G_t, or ``"absolute"``.
        anchor_point: rho of A = rho W_m + (1 - rho) W_0, what the anchor pulls to, with W_0 of the base
            model. 1 is the merged model; FeatCal (arXiv 2605.13030) goes past it, to 2.2.
        anchor_in: what lambda is part of: the ``"objective"``, so that it shapes both W* and the metric that
            W* is rounded in, or the ``"centre"`` W* alone, as QEP (arXiv 2504.09629) damps its correction.
        asymmetry: a of GPTAQ (arXiv 2504.02692), for the merged target on inputs from the model quantised so
            far: GPTQ's column loop then also makes up for what the layers before did to these inputs x, by
            a E[(x~ - x) x^T] with x~ those of the merged model in full precision. 0 is GPTQ, 0.25 GPTAQ's own
            value. Roundings without a column loop pass it over.
        task_weight: c_t, ``"uniform"`` or ``"frobenius"`` (1 / ||G_t||_F).
        damping: GPTQ's ridge on the Hessian that is rounded in, relative to its mean diagonal; it does not
            touch the centre.
        teacher: whose layers give the targets: the ``"experts"``, or the ``"merged"`` model in full precision
            on its own stream (error compensation without experts, as QEP, arXiv 2504.09629, has it).
        patch_weight: what a token other than the class token counts for in the last block of an image tower,
            whose head reads the class token alone: inputs of the output projection and of the MLP. 1 for all
            alike; FeatCal takes 0.01.
        patch_scope: which inputs ``patch_weight`` is of: ``"outputs"`` of the attention and what follows, or
            ``"queries"``: those of the queries and of the first norm, too, all but the keys' and values'.
        off_diagonal: factor on the off-diagonal entries of every G_t (RegMean uses 0.95), 1 leaves them.
        recalibrate: ``"bias"`` also shifts every bias so that mean outputs meet the target, ``"none"`` not.
        biases: ``"closed-form"`` solves every bias after its weight as FeatCal does: as ``recalibrate`` has
            it, with the anchor's pull to the biases of its point. Only for the expert target; it then stands
            in for ``recalibrate``. ``"kept"`` leaves this out.
        norms: ``"closed-form"`` solves scale and shift of the norms before the layers, see
            :class:`epmq.layer.affine.NormMoments`; only for the expert target. ``"kept"`` leaves them.
        layers: shell-style pattern of the layers to quantise, over names like ``blocks.0.mlp.c_fc``.
    """

    target: Target = "merged"
    source: Source = "quantised"
    sequential: Literal["group", "block"] = "group"
    mixing: float = 0.0
    anchor: float = 0.001
    anchor_scale: AnchorScale = "relative"
    anchor_point: float = 1.0
    anchor_in: Literal["objective", "centre"] = "objective"
    asymmetry: float = 0.0
    task_weight: TaskWeight = "uniform"
    damping: float = 0.01
    teacher: Literal["experts", "merged"] = "experts"
    patch_weight: float = 1.0
    patch_scope: Literal["outputs", "queries"] = "outputs"
    off_diagonal: float = 1.0
    recalibrate: Literal["none", "bias"] = "none"
    biases: Literal["kept", "closed-form"] = "kept"
    norms: Literal["kept", "closed-form"] = "kept"
    layers: str = "*"

    def __post_init__(self) -> None:
        choose("target", self.target, ("merged", "expert"))
        choose("source", self.source, ("merged", "quantised", "expert-block", "expert"))
        choose("anchor_scale", self.anchor_scale, ("relative", "absolute"))
        choose("anchor_in", self.anchor_in, ("objective", "centre"))
        choose("task_weight", self.task_weight, ("uniform", "frobenius"))
        choose("recalibrate", self.recalibrate, ("none", "bias"))
        choose("teacher", self.teacher, ("experts", "merged"))
        choose("sequential", self.sequential, ("group", "block"))
        choose("patch_scope", self.patch_scope, ("outputs", "queries"))
        choose("biases", self.biases, ("kept", "closed-form"))
        choose("norms", self.norms, ("kept", "closed-form"))
        for name in ("mixing", "off_diagonal", "patch_weight", "asymmetry"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)} is out of range; give a number from 0 to 1")
        for name in ("anchor", "damping", "anchor_point"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range; give a finite number, 0 or more"
                )

    @property
    def follows_experts(self) -> bool:
        """Whether each teacher's own stream is walked beside the model's."""
        mixed = self.target == "expert" and self.mixing > 0
        return self.source == "expert" or mixed or self.asymmetric

    @property
    def asymmetric(self) -> bool:
        """Whether inputs are told from those in full precision."""
        return self.target == "merged" and self.source == "quantised" and self.asymmetry > 0

    @property
    def own_teacher(self) -> bool:
        """Whether the merged model in full precision is the teacher."""
        return self.teacher == "merged" or self.asymmetric

    @property
    def idle(self) -> tuple[str, ...]:
        """Axes that change no number, given the others."""
        found = GUIDED if self.target == "merged" else ()
        if self.source != "quantised":
            found = (*found, "sequential")
        if self.target == "expert" or self.source != "quantised":
            found = (*found, "asymmetry")
        if self.patch_weight == 1:
            found = (*found, "patch_scope")
        if self.closed_biases:
            found = (*found, "recalibrate")
        return found

    @property
    def closed_biases(self) -> bool:
        """Whether biases are solved in closed form."""
        return self.target == "expert" and self.biases == "closed-form"

    @property
    def closed_norms(self) -> bool:
        """Whether norms are solved in closed form."""
        return self.target == "expert" and self.norms == "closed-form"

    @property
    def needs_base(self) -> bool:
        """Whether the base model's weights are read."""
        return self.target == "expert" and self.anchor_point != 1

    @property
    def recorded(self) -> dict[str, Any]:
        """The axes as cells and records have them, see ``LATER``."""
        plain = Calibration()
        return {n: v for n, v in asdict(self).items() if n not in LATER or v != getattr(plain, n)}
