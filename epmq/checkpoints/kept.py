"""Weights that are kept for later, in safetensors files; believed only with the hash written with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from epmq.files import replacing

HASH = "content_sha256"  # in a file's metadata


def keep(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors atomically with a hash of their names, dtypes, shapes and bytes; a link is replaced.

    Raises:
        OSError, SafetensorError: the disk refuses.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    digest = hashlib.sha256()
    for name in sorted(whole):
        _add(digest, name, whole[name])
    with replacing(file) as temporary:
        save_file(whole, temporary, {**metadata, HASH: digest.hexdigest()})


def kept(file: Path, metadata: Mapping[str, str]) -> bool:
    """Whether ``file`` is what :func:`keep` wrote with ``metadata``: a regular file, whole, unchanged.

    It is read once; as long as its size, time and inode stay, the answer does.
    """
    try:
        if file.is_symlink() or not file.is_file():
            return False
        found = file.stat()
        return _unchanged(file, (found.st_size, found.st_mtime_ns, found.st_ino), tuple(metadata.items()))
    except OSError:
        return False


@lru_cache(maxsize=64)
def _unchanged(file: Path, _: tuple[int, ...], metadata: tuple[tuple[str, str], ...]) -> bool:
    digest = hashlib.sha256()
    try:
        with safe_open(file, framework="pt") as opened:
            told = dict(opened.metadata() or {})
            for name in sorted(opened.keys()):
                _add(digest, name, opened.get_tensor(name))
    except (OSError, SafetensorError, ValueError):
        return False
    return told == {**dict(metadata), HASH: digest.hexdigest()}


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    digest.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
