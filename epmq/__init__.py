"""Expert-guided post-merge quantisation of layers, models and merges of them.

    import epmq
    experts = epmq.load_experts(model, {"cars": "models/cars", "digits": "models/digits"})
    report = epmq.quantise(model, experts, inputs, "epmq", epmq.QuantSpec(bits=4), merge="task-arithmetic")

The names below are all that most programs need. Each is imported when it is first used, so that
``import epmq`` waits for no library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epmq.calibration import Calibration
    from epmq.errors import UserError
    from epmq.experts import load_experts
    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight
    from epmq.merging import merge
    from epmq.packed.reading import load_weights
    from epmq.packed.writing import write_checkpoint
    from epmq.quantising import Quantised, quantise

__all__ = [
    "Calibration",
    "LayerProblem",
    "QuantSpec",
    "Quantised",
    "QuantizedWeight",
    "UserError",
    "load_experts",
    "load_weights",
    "merge",
    "quantise",
    "write_checkpoint",
]
_HOMES = {
    "Calibration": "epmq.calibration",
    "LayerProblem": "epmq.layer.problem",
    "QuantSpec": "epmq.layer.spec",
    "Quantised": "epmq.quantising",
    "QuantizedWeight": "epmq.layer.weight",
    "UserError": "epmq.errors",
    "load_experts": "epmq.experts",
    "load_weights": "epmq.packed.reading",
    "merge": "epmq.merging",
    "quantise": "epmq.quantising",
    "write_checkpoint": "epmq.packed.writing",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
