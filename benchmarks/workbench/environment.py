"""What a run ran on: packages, machine, code revision."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.workbench.code import code_digest

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
