"""Methods as rows: what a method starts from, its calibration passes, and who rounds the last one.

E-PMQ is not a second code path: it is any registered rounding on the expert target. A control is a row of the
same parts (:mod:`baselines.controls`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from baselines.registry import names
from epmq.calibration import Calibration, Target
from epmq.errors import UserError, nearest
from epmq.refinement.budget import Budget

Reading = Literal["weights", "features"]
EPMQ = "arXiv:2605.16882"


@dataclass(frozen=True)
class Pass:
    """One calibration walk over the model: a target and axes of :class:`epmq.calibration.Calibration`.

    ``fixed`` axes are the method's identity, and so are ``pooled`` ones where the models read a class token
    alone; ``defaults`` may be overridden by a suite, by its ``reading`` of the expert target, and both by
    whoever runs it.
    """

    target: Target
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading | None = None
    pooled: Mapping[str, Any] = field(default_factory=dict)

    def calibration(
        self,
        overrides: Mapping[str, Any],
        *,
        rounded: bool,
        chosen: Mapping[str, Mapping[str, Any]] | None = None,
        pooled: bool = True,
    ) -> Calibration:
        """The axes; raises UserError for a value out of range.

        Axes that cannot change the pass's numbers keep their defaults, so that no cell has two keys.

        Args:
            overrides: what the command gives.
            rounded: whether a rounding follows.
            chosen: a suite's own defaults by reading.
            pooled: whether the models' head reads a class token alone, as an image tower's.
        """
        suite = (chosen or {}).get(self.reading or "", {})
        fixed = {**self.fixed, **(self.pooled if pooled else {})}
        given = {**self.defaults, **suite, **overrides, "target": self.target, **fixed}
        found, plain = Calibration(**given), Calibration()
        idle = (*found.idle, *(() if rounded else ("damping", "anchor_in", "asymmetry")))
        return replace(found, **{name: getattr(plain, name) for name in idle})


@dataclass(frozen=True)
class EndToEnd:
    """A registered refinement, and its defaults of :class:`epmq.refinement.budget.Budget`."""

    name: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def budget(self, overrides: Mapping[str, Any], *, text: bool, exact: bool) -> Budget:
        """The axes; raises UserError for a value out of range.

        Axes that cannot change the numbers keep their defaults, so that no cell has two keys.

        Args:
            overrides: what the command gives.
            text: whether the model answers in text.
            exact: whether it starts in full precision, where there are no scales.
        """
        given, plain = Budget(**{**self.defaults, **overrides}), Budget()
        given = replace(given, intermediate=0.0) if text else replace(given, top=plain.top)
        return replace(given, scale_rate=plain.scale_rate) if exact else given


@dataclass(frozen=True)
class Search:
    """What is chosen on calibration samples that are held out, one after the other, each among a few values.

    Whoever runs it may fix any of them. First come options of the merge, by how far the merged model in full
    precision is from the experts, then axes of the passes, by how far the row's own model is.

    Attributes:
        merge: values of options; those that a merge does not have are left out.
        axes: values of axes of :class:`epmq.calibration.Calibration`.
        held_out: share of every task's samples that chooses; the others calibrate what it chooses from.
    """

    merge: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    held_out: float = 0.2

    def without(self, names: Iterable[str]) -> Search:
        """What is left where some are fixed."""
        fixed = set(names)
        merge, axes = ({n: v for n, v in each.items() if n not in fixed} for each in (self.merge, self.axes))
        return Search(merge, axes, self.held_out)

    @property
    def recorded(self) -> dict[str, str | float]:
        """The grid as records have it, flat."""
        grid = {**self.merge, **self.axes}
        return {n: " ".join(map(str, values)) for n, values in grid.items()} | {"held_out": self.held_out}


@dataclass(frozen=True)
class Recipe:
    """A named row of a comparison.

    Attributes:
        passes: calibration walks, one after the other; all but the last leave full precision behind.
        rounding: the registered rounding of the last pass; ``None`` leaves full precision behind too.
        start: the registered merge that the first pass begins from, or ``"base"`` for the base model;
            ``None`` is the merge that is asked for.
        search: what of the merge and of the passes is chosen on held-out calibration samples.
        before: a refinement of the start, in full precision, before the first pass.
        after: a refinement of what the last pass leaves.
        own: what every task has of its own expert: ``"nothing"``, its ``"linears"`` in the start's shell, or
            ``"all"``.
        kind: ``"control"`` for what stands beside the methods.
    """

    name: str
    summary: str
    passes: tuple[Pass, ...] = ()
    rounding: str | None = None
    start: str | None = None
    search: Search | None = None
    before: EndToEnd | None = None
    after: EndToEnd | None = None
    own: Literal["nothing", "linears", "all"] = "nothing"
    kind: Literal["method", "control"] = "method"
    reference: str = EPMQ


# Reading A: the experts' weights on the model's inputs.
WEIGHTS = {"mixing": 0.0}
READING_A = Pass("expert", WEIGHTS, reading="weights")
# Reading B: the experts' own features. The mixing, and the default anchor of Calibration, are those that the
# label-free search of benchmarks/studies/tune.py found on micro-clip-8 (its tuning.md is with the results).
FEATURES = {"mixing": 0.75}
READING_B = Pass("expert", {}, FEATURES, reading="features")
NO_ANCHOR = {"anchor": 0.0}
NO_ANCHOR_A = replace(READING_A, fixed={**WEIGHTS, **NO_ANCHOR})
NO_ANCHOR_B = replace(READING_B, fixed=NO_ANCHOR)
# Refinements. Their budgets were chosen by held-out losses on micro-clip-8 (docs/refinement.md).
TUNED = EndToEnd("tuned", {"steps": 200, "learning_rate": 0.003})
DISTILLED = EndToEnd("trained", {"steps": 1000})
THROUGH = EndToEnd("trained", {"steps": 200})
GPTQ = Pass("merged")
# Both readings and what is between them, from the defaults on.
AUTO = Search(
    {"scale": (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1.0)},
    {
        "anchor": (1e-4, 1e-3, 1e-2, 1e-1),
        "mixing": (0.0, 0.5, 0.75, 1.0),
        "task_weight": ("uniform", "frobenius"),
    },
)
# The merge's own options alone.
AUTO_MERGE = Search(AUTO.merge)
FAMILIAR = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "epmq", "E-PMQ, reading A (experts' weights on the model's inputs), GPTQ", (READING_A,), "gptq"
        ),
        Recipe("epmq-rtn", "E-PMQ, reading A, rounded to nearest", (READING_A,), "rtn"),
        Recipe("epmq-awq", "E-PMQ, reading A, rounded AWQ-style", (READING_A,), "awq"),
        Recipe("epmq-no-anchor", "ablation: reading A, no anchor", (NO_ANCHOR_A,), "gptq"),
        Recipe("epmq-features", "E-PMQ, reading B (experts' own features), GPTQ", (READING_B,), "gptq"),
        Recipe("epmq-features-no-anchor", "ablation: reading B, no anchor", (NO_ANCHOR_B,), "gptq"),
        Recipe(
            "epmq-auto",
            "E-PMQ, GPTQ; merge factor, anchor, mixing, task weight chosen on held-out calibration samples",
            (READING_B,),
            "gptq",
            search=AUTO,
        ),
        Recipe("gptq-tuned", "GPTQ, then scales, biases and norms tuned", (GPTQ,), "gptq", after=TUNED),
        Recipe("epmq-tuned", "epmq, then scales, biases and norms tuned", (READING_A,), "gptq", after=TUNED),
        Recipe(
            "epmq-features-tuned",
            "epmq-features, then scales, biases and norms tuned",
            (READING_B,),
            "gptq",
            after=TUNED,
        ),
        Recipe(
            "epmq-qat",
            "epmq-features, then trained through the rounding",
            (READING_B,),
            "gptq",
            after=THROUGH,
        ),
    )
}


def familiar() -> dict[str, Recipe]:
    """The familiar names, and every other registered rounding on the expert target."""
    return {**FAMILIAR, **{recipe.name: recipe for recipe in map(_guided, names())}}


def resolve(patterns: Iterable[str], targets: Iterable[Target]) -> list[Recipe]:
    """Methods for the command line's names: familiar ones as they are, roundings with every asked target.

    A rounding with the expert target is reading A and goes by its familiar name where it has one, so the same
    cell never gets two names.

    Raises:
        UserError: a name or pattern matches nothing.
    """
    found: dict[str, Recipe] = {}
    for pattern in patterns:
        guided = [recipe for name, recipe in familiar().items() if fnmatchcase(name, pattern)]
        roundings = names(pattern)
        if not guided and not roundings:
            raise UserError(f"method {pattern[:60]!r} is unknown{nearest(pattern, [*familiar(), *names()])}")
        for recipe in [*guided, *(_with_target(r, t) for r in roundings for t in targets)]:
            found[recipe.name] = recipe
    return list(found.values())


def _with_target(rounding: str, target: Target) -> Recipe:
    return _guided(rounding) if target == "expert" else Recipe(rounding, "", (Pass(target),), rounding)


def _guided(rounding: str) -> Recipe:
    """A rounding on the expert target, by its familiar name where it has one."""
    name = "epmq" if rounding == "gptq" else f"epmq-{rounding}"
    recipe = FAMILIAR.get(name)
    if recipe and recipe.rounding != rounding:
        raise UserError(
            f"baseline {rounding!r} on the expert target would be {name!r}, which is taken; rename it"
        )
    return recipe or Recipe(name, f"E-PMQ, reading A, rounded by {rounding}", (READING_A,), rounding)
