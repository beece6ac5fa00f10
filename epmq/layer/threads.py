"""Rows in parallel: compiled kernels over ranges of rows, on plain threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

LEAST_WORK = 1 << 21  # multiplications worth a thread of their own, some tenths of a millisecond


def over_rows(kernel: Callable[..., None], rows: int, work: int, *arguments: Any) -> None:
    """Call ``kernel(first, last, *arguments)`` on ranges that cover ``rows``; it must release the GIL.

    As many threads as torch uses, fewer for little ``work``. Numba's own parallel loops wait for one another
    by spinning, beside torch's; on a busy machine that takes a small layer a hundred times longer.
    """
    count = max(1, min(torch.get_num_threads(), work // LEAST_WORK, rows))
    bounds = [rows * part // count for part in range(count + 1)]
    if count == 1:
        kernel(0, rows, *arguments)
        return
    with ThreadPoolExecutor(count) as pool:
        parts = [pool.submit(kernel, *part, *arguments) for part in pairwise(bounds)]
    for part in parts:
        part.result()
