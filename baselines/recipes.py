"""Familiar names: a rounding with the target and the calibration axes that make it a published method.

E-PMQ is not a second code path: it is any registered rounding on the expert target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from baselines.registry import names
from epmq.calibration import IRRELEVANT, Calibration, Target
from epmq.errors import UserError, nearest


@dataclass(frozen=True)
class Recipe:
    """A named method: a rounding, a target and axes of :class:`epmq.calibration.Calibration`.

    ``fixed`` axes are the method's identity; ``defaults`` may be overridden by whoever runs it.
    """

    name: str
    rounding: str
    target: Target
    summary: str
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    def calibration(self, overrides: Mapping[str, Any]) -> Calibration:
        """The method's axes under the caller's overrides; raises UserError for a value out of range."""
        asked = Calibration(**{**self.defaults, **overrides, "target": self.target, **self.fixed})
        plain = Calibration()  # axes that cannot change this target's numbers keep their defaults
        return replace(asked, **{name: getattr(plain, name) for name in IRRELEVANT[self.target]})


WEIGHTS = {"mixing": 0.0}  # reading A: the experts' weights on the model's inputs
# Reading B: the experts' own features. The mixing, and the default anchor of Calibration, are those that the
# label-free search of benchmarks/studies/tune.py found on micro-clip-8 (results/v1/micro-clip-8/tuning.md).
FEATURES = {"mixing": 0.75}
FAMILIAR = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "epmq",
            "gptq",
            "expert",
            "E-PMQ, reading A (experts' weights on the model's inputs), GPTQ",
            WEIGHTS,
        ),
        Recipe("epmq-rtn", "rtn", "expert", "E-PMQ, reading A, rounded to nearest", WEIGHTS),
        Recipe("epmq-awq", "awq", "expert", "E-PMQ, reading A, rounded AWQ-style", WEIGHTS),
        Recipe(
            "epmq-no-anchor", "gptq", "expert", "ablation: reading A, no anchor", {**WEIGHTS, "anchor": 0.0}
        ),
        Recipe(
            "epmq-features", "gptq", "expert", "E-PMQ, reading B (experts' own features), GPTQ", {}, FEATURES
        ),
        Recipe(
            "epmq-features-no-anchor",
            "gptq",
            "expert",
            "ablation: reading B, no anchor",
            {"anchor": 0.0},
            FEATURES,
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
            raise UserError(f"method {pattern!r} is unknown{nearest(pattern, [*familiar(), *names()])}")
        for recipe in [*guided, *(_with_target(r, t) for r in roundings for t in targets)]:
            found[recipe.name] = recipe
    return list(found.values())


def _with_target(rounding: str, target: Target) -> Recipe:
    return _guided(rounding) if target == "expert" else Recipe(rounding, rounding, target, "")


def _guided(rounding: str) -> Recipe:
    """A rounding on the expert target, by its familiar name where it has one."""
    name = "epmq" if rounding == "gptq" else f"epmq-{rounding}"
    recipe = FAMILIAR.get(name)
    if recipe and recipe.rounding != rounding:
        raise UserError(
            f"baseline {rounding!r} on the expert target would be {name!r}, which is taken; rename it"
        )
    return recipe or Recipe(name, rounding, "expert", f"E-PMQ, reading A, rounded by {rounding}", WEIGHTS)
