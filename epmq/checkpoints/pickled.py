"""Legacy pickled checkpoints: loaded without running code, and read from a safetensors copy."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epmq.checkpoints.kept import keep, kept
from epmq.checkpoints.lazy import sha256
from epmq.errors import UserError

SOURCE = "source_sha256"  # in the copy's metadata


def converted(path: Path, folder: Path) -> Path:
    """The safetensors copy of a pickled checkpoint, ``folder/<SHA-256 of path>.safetensors``.

    It is made once, and again where it is not of the pickle as it is now, or not as it was written. A state
    dict below the key ``state_dict`` (a training checkpoint) is found.

    Raises:
        UserError: the pickle needs code to run, is damaged, or holds no state dict.
        OSError, SafetensorError: the copy cannot be written.
    """
    digest = sha256(path)
    copy = folder / f"{digest}.safetensors"
    metadata = {SOURCE: digest, "format": "pt"}
    if not kept(copy, metadata):
        _write(_state_dict(path), copy, metadata)
    return copy


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: loading this pickle would run code, which is refused; save the model's state dict "
            "(torch.save(model.state_dict(), ...)) or convert it to safetensors where you trust it"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: is corrupt or truncated ({error}); download or export it again") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise UserError(f"{path}: holds no state dict (names and tensors); save model.state_dict() instead")
    return dict(loaded)


def _write(state: dict[str, Tensor], copy: Path, metadata: dict[str, str]) -> None:
    """Write atomically; tied tensors, which safetensors refuses, become tensors of their own."""
    seen: set[int] = set()
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        whole = storage not in seen and tensor.is_contiguous()
        state[name] = tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage)
    copy.parent.mkdir(parents=True, exist_ok=True)
    keep(state, copy, metadata)
