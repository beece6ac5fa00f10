"""Familiar names: a rounding with the target and the calibration axes that make it a published method.

E-PMQ is not a second code path: it is any registered rounding on the expert target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from baselines.registry import get, names
from epmq.calibration import Calibration, Target
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
        return Calibration(**{**self.defaults, **overrides, "target": self.target, **self.fixed})


WEIGHTS = {"mixing": 0.0}  # reading A: the experts' weights on the model's inputs
FEATURES = {"mixing": 1.0}  # reading B: the experts' own features
FAMILIAR = {
    recipe.name: recipe
    for recipe in (
        Recipe("epmq", "gptq", "expert", "E-PMQ, reading A (experts' weights on the model's inputs), GPTQ", WEIGHTS),
        Recipe("epmq-rtn", "rtn", "expert", "E-PMQ, reading A, rounded to nearest", WEIGHTS),
        Recipe("epmq-awq", "awq", "expert", "E-PMQ, reading A, rounded AWQ-style", WEIGHTS),
        Recipe("epmq-no-anchor", "gptq", "expert", "ablation: reading A, no anchor", {**WEIGHTS, "anchor": 0.0}),
        Recipe("epmq-features", "gptq", "expert", "E-PMQ, reading B (experts' own features), GPTQ", {}, FEATURES),
        Recipe("epmq-features-no-anchor", "gptq", "expert", "ablation: reading B, no anchor", {"anchor": 0.0}, FEATURES),
    )
}


def resolve(patterns: Iterable[str], targets: Iterable[Target]) -> list[Recipe]:
    """Methods for the command line's names: familiar ones as they are, roundings with every asked target.

    A rounding with the expert target is reading A and goes by its familiar name where it has one, so the same
    cell never gets two names.

    Raises:
        UserError: a name or pattern matches nothing.
    """
    found: dict[str, Recipe] = {}
    for pattern in patterns:
        familiar = [r for name, r in FAMILIAR.items() if fnmatchcase(name, pattern)]
        roundings = names(pattern)
        if not familiar and not roundings:
            raise UserError(f"method {pattern!r} is unknown{nearest(pattern, [*FAMILIAR, *names()])}")
        for recipe in [*familiar, *(_with_target(r, t) for r in roundings for t in targets)]:
            found[recipe.name] = recipe
    return list(found.values())


def _with_target(rounding: str, target: Target) -> Recipe:
    if target == "merged":
        return Recipe(rounding, rounding, target, get(rounding).summary)
    name = "epmq" if rounding == "gptq" else f"epmq-{rounding}"
    return FAMILIAR.get(name) or Recipe(name, rounding, target, f"E-PMQ, reading A, rounded by {rounding}", WEIGHTS)
