"""Activations that are kept for later passes over the same block, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

BUDGET = 2**29  # bytes of activations that a block's passes keep; what is beyond is computed again


class Kept:
    """Tensors by key, of ``budget`` bytes at most; what no longer fits is not taken in."""

    def __init__(self, budget: int | None = None) -> None:
        self._left = BUDGET if budget is None else budget
        self._tensors: dict[Hashable, tuple[Tensor, int]] = {}

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, if it fits. Of what it is a view of, it keeps all."""
        self.pop(key)
        size = tensor.untyped_storage().nbytes()
        if tensor.is_inference() or size > self._left:  # whether such a tensor changes cannot be told
            return
        self._left -= size
        self._tensors[key] = tensor, tensor._version

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor of a key; ``None`` where it is not kept, or was changed in place since."""
        tensor, version = self._tensors.get(key, (None, 0))
        return tensor if tensor is not None and tensor._version == version else None

    def pop(self, key: Hashable) -> Tensor | None:
        """As :meth:`get`, and keep it no longer."""
        found = self.get(key)
        if key in self._tensors:
            self._left += self._tensors.pop(key)[0].untyped_storage().nbytes()
        return found


@contextmanager
def remembering(
    block: nn.Module, paths: Sequence[str], kept: Kept, key: Hashable, *, last: bool
) -> Iterator[None]:
    """Within, layers at ``paths`` of a block give the outputs that are kept, and keep those they compute.

    Only for layers whose inputs and weights are the same whenever ``key`` is. ``last`` keeps nothing longer.
    """
    with ExitStack() as stack:
        for path in paths:
            layer: Any = block.get_submodule(path)
            layer.forward = _remembered(layer.forward, kept, (key, path), last)
            stack.callback(layer.__dict__.pop, "forward")
        yield


def _remembered(
    forward: Callable[[Tensor], Tensor], kept: Kept, key: Hashable, last: bool
) -> Callable[[Tensor], Tensor]:
    def remembered(x: Tensor) -> Tensor:
        found = kept.pop(key) if last else kept.get(key)
        if found is None:
            found = forward(x)
            if not last:
                kept.put(key, found)
        return found

    return remembered
