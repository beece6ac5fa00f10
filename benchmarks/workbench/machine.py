"""The device a run computes on, and the precision that models are evaluated in."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from epmq.errors import UserError, choose

DtypeName = Literal["float32", "bfloat16", "float16"]
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Machine:
    """A device, and the dtype of the forward passes that are evaluated (calibration stays float32)."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: DtypeName = "float32"

    @classmethod
    def choose(cls, device: str = "auto", dtype: str = "float32") -> Machine:
        """``device``: auto (a GPU where there is one), cpu, cuda or cuda:N.

        Raises:
            UserError: an unknown name, or a device that this machine lacks.
        """
        choose("dtype", dtype, get_args(DtypeName))
        found = torch.cuda.device_count()
        if device == "auto":
            device = "cuda" if found else "cpu"
        kind, _, number = device.partition(":")
        if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdecimal())):
            raise UserError(f"device {device!r} is unknown; give auto, cpu, cuda or cuda:N")
        if kind == "cuda" and int(number or 0) >= found:
            raise UserError(
                f"device {device!r} is not there: {found} CUDA devices are seen; give another one"
            )
        return cls(torch.device(device), dtype)  # type: ignore[arg-type]

    def ready(self, model: Module) -> Module:
        """``model`` in the dtype of evaluation: itself in float32, otherwise a copy."""
        return model if self.dtype == "float32" else copy.deepcopy(model).to(getattr(torch, self.dtype))
