"""Where a cell's unfinished work is kept, to go on from after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sources import cache
from benchmarks.workbench import code
from benchmarks.workbench.base import Workbench


def place(workbench: Workbench, name: str, described: Mapping[str, Any], modules: Sequence[str]) -> Path:
    """A file of the cache, named by everything that its numbers depend on.

    Args:
        name: the cache's folder and the suffix, as in ``refined/*.pt``.
        described: of the cell, what they depend on; JSON.
        modules: files of the methods behind it.

    Raises:
        UserError: the folder cannot be made.
    """
    folder, _, suffix = name.partition("/*")
    digest = code.code_digest(*map(Path, modules))
    origin = {"cell": described, "context": workbench.context, "code": digest}
    text = json.dumps(origin, sort_keys=True)
    return cache.folder(folder) / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}{suffix}"
