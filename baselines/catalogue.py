"""All that is registered, as lists and pages tell of it: what it is, what it needs, where it is from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baselines import refinements, registry
from baselines.controls import CONTROLS
from baselines.recipes import Recipe, familiar
from epmq.merging import REFERENCES, known, options_of

FIELDS = ("family", "needs", "reference", "summary")


@dataclass(frozen=True)
class Entry:
    """One name.

    Attributes:
        needs: what it takes of the calibration samples: ``"none"``, the ``"Hessian"`` (second moments of
            every layer's inputs), the model's ``"outputs"``, or ``"gradients"`` through the whole model.
        about: its docstring without the first sentence, where it is a function.
        settings: options with their defaults, or the axes that it fixes.
        module: where it is defined.
    """

    name: str
    family: str
    needs: str
    reference: str
    summary: str
    about: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""

    @property
    def row(self) -> dict[str, str]:
        """What a list shows of it."""
        return {"name": self.name, **{name: str(getattr(self, name)) for name in FIELDS}}


def merges() -> list[Entry]:
    """Every merge; none of them reads a sample."""
    found = []
    for name, function in known().items():
        summary, about = _docstring(function)
        reference = REFERENCES.get(name, "")
        module = function.__module__
        found.append(Entry(name, "merge", "none", reference, summary, about, options_of(name, {}), module))
    return found


def roundings() -> list[Entry]:
    """Every rounding, which is a method on either target."""
    found = []
    for method in map(registry.get, registry.names()):
        about = " ".join(_docstring(method.rounding))
        told = (method.needs, method.reference, method.summary, about)
        module = method.rounding.__module__
        found.append(Entry(method.name, "rounding", *told, module=module))
    return found


def methods() -> list[Entry]:
    """Every familiar name: a target, axes, and a rounding."""
    return [_of_recipe(recipe) for recipe in familiar().values()]


def controls() -> list[Entry]:
    """Every control."""
    return [_of_recipe(recipe) for recipe in CONTROLS.values()]


def trained() -> list[Entry]:
    """Every refinement."""
    found = map(refinements.get, refinements.names())
    return [Entry(r.name, "refinement", "gradients", r.reference, r.summary) for r in found]


def _of_recipe(recipe: Recipe) -> Entry:
    settings: dict[str, Any] = {}
    for number, each in enumerate(recipe.passes):
        prefix = "then." * number
        settings |= {f"{prefix}{name}": value for name, value in {**each.defaults, **each.fixed}.items()}
    if recipe.search is not None:
        settings |= {f"searched {name}": value for name, value in recipe.search.recorded.items()}
    told = (_needs(recipe), recipe.reference, recipe.summary)
    module = f"baselines.{'controls' if recipe.kind == 'control' else 'recipes'}"
    return Entry(recipe.name, _family(recipe), *told, settings=settings, module=module)


def _family(recipe: Recipe) -> str:
    if recipe.before or recipe.after:
        return "refined end to end"
    if recipe.search:
        return "chosen on samples"
    if not recipe.passes:
        return "bound"
    experts = [each for each in recipe.passes if each.target == "expert"]
    if any(each.fixed.get("teacher") != "merged" for each in experts):
        return "expert target"
    return "error compensation"


def _needs(recipe: Recipe) -> str:
    if recipe.before or recipe.after:
        return "gradients"
    if recipe.passes:
        return "Hessian"
    return "outputs" if recipe.search else "none"


def _docstring(function: Any) -> tuple[str, str]:
    """The first sentence or line of a docstring, and its other words; sections of arguments are left out."""
    text = inspect.getdoc(function) or ""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    told = [part for part in paragraphs if not part.startswith(("Args:", "Returns:", "Raises:"))]
    return (told[0], " ".join(told[1:])) if told else ("", "")
