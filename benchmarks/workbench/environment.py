"""What a run ran on: packages, machine, code revision."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import baselines
import benchmarks
import epmq

PACKAGES = (
    "epmq",
    "torch",
    "open_clip_torch",
    "transformers",
    "datasets",
    "huggingface_hub",
    "pillow",
    "torchvision",
    "numpy",
    "scipy",
    "numba",
    "safetensors",
    "tokenizers",
    "lm_eval",
)


def describe() -> dict[str, Any]:
    """Environment for the manifest: packages, machine, threads, git commit and whether it was dirty."""
    commit = _git("rev-parse", "HEAD")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "git_commit": commit,
        "git_dirty": bool(_git("status", "--porcelain")) if commit else None,
        "code": code_digest(),
    }


@cache
def code_digest(rounding: str | None = None) -> str:
    """SHA-256 over the sources that compute numbers: epmq, benchmarks and the rounding method's module."""
    files = [f for package in (epmq, benchmarks) for f in sorted(_folder(package).glob("*.py"))]
    if rounding is not None:
        files.append(Path(inspect.getfile(baselines.get(rounding).rounding)))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _folder(package: ModuleType) -> Path:
    return Path(str(package.__file__)).parent


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
