"""Merged weights on disk: a merge is computed once, streamed into the model, and read by later cells.

What is read is what was written, by the hash in the file; anything else is computed again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.sources import cache
from benchmarks.workbench import code
from epmq.checkpoints.kept import keep, kept
from epmq.checkpoints.lazy import LazyCheckpoint
from epmq.merging import known
from epmq.models.tower import Tower

MERGE = "merge"  # in a file's metadata: what it is a merge of, by hash


class MergedWeights:
    """Merges of one base and its experts.

    Args:
        root: the cache's folder of merged weights.
        origin: hashes of the base and of the experts, which the merges depend on.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        experts: Sequence[Mapping[str, Tensor]],
        root: Path,
        origin: Mapping[str, Any],
    ) -> None:
        self.base, self.experts, self.root, self.origin = base, experts, root, origin

    def load(self, tower: Tower, name: str, options: Mapping[str, Any]) -> None:
        """Fill ``tower`` with a merge, from the cache or computed tensor by tensor."""
        file = self._file(name, options)
        told = {MERGE: file.stem}
        if kept(file, told):
            tower.load_all(LazyCheckpoint(file))
            return
        steps = known()[name](self.base, self.experts, **options)
        tower.load_stream(tqdm(steps, desc=f"merging ({name})", total=len(self.base), leave=False, delay=2))
        with cache.errors(file):
            keep({key: p.detach().cpu() for key, p in tower.merged_parameters().items()}, file, told)

    def _file(self, name: str, options: Mapping[str, Any]) -> Path:
        described = {
            "merge": name,
            "options": dict(options),
            "origin": dict(self.origin),
            "code": code.merging_digest(Path(inspect.getfile(known()[name]))),
        }
        text = json.dumps(described, sort_keys=True)
        return self.root / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
