"""Sizes of towers, from which a plan estimates memory and time before a checkpoint is here."""

from __future__ import annotations

from benchmarks.suites.strict import Count, Strict


class TowerSpec(Strict):
    """The size of a vision transformer, for plans that are made before its checkpoint is here."""

    image_size: Count
    patch_size: Count
    width: Count
    layers: Count
    mlp_width: Count

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def parameters(self) -> int:
        """Numbers that are merged: everything but the projection."""
        d, m = self.width, self.mlp_width
        block = 4 * (d * d + d) + (d * m + m) + (m * d + d) + 4 * d
        return d + 3 * d * self.patch_size**2 + self.tokens * d + 4 * d + self.layers * block

    @property
    def flops(self) -> int:
        """Floating-point operations of one image's forward pass: two per multiplication in the matrices."""
        d, n = self.width, self.tokens
        block = 2 * n * (4 * d * d + 2 * d * self.mlp_width) + 4 * n * n * d
        return 2 * (n - 1) * d * 3 * self.patch_size**2 + self.layers * block


class TextTowerSpec(Strict):
    """The size of a T5, for plans; ``tokens`` is a guess at a prompt's length, targets are short."""

    width: Count
    inner_width: Count  # of attention: heads times their size
    mlp_width: Count
    layers: Count  # encoder and decoder together
    vocabulary: Count
    tokens: Count

    @property
    def parameters(self) -> int:
        """Numbers that are merged: half of the layers are the decoder's, which attend twice."""
        return 2 * self.vocabulary * self.width + self._matrices

    @property
    def _matrices(self) -> int:
        attention, gated = 4 * self.width * self.inner_width, 3 * self.width * self.mlp_width
        return self.layers * gated + (self.layers + self.layers // 2) * attention

    @property
    def flops(self) -> int:
        """Floating-point operations of one prompt: its pass through the encoder's half of the matrices."""
        return 2 * self.tokens * self._matrices // 2
