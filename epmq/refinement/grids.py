"""Quantised layers whose grids are learnt: with codes that stay, or with codes derived anew at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from epmq.errors import UserError
from epmq.layer.grid import by_group, decode, encode, held_as, levels, offsets, stored
from epmq.layer.weight import QuantizedWeight, stacked
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower


class _Grid(nn.Module):
    """The grid of one layer's rows; scales are learnt as factors, by their logarithm."""

    def __init__(self, weight: QuantizedWeight, device: torch.device) -> None:
        super().__init__()
        self.spec, self.weight = weight.spec, weight.to(device)
        self.start = self.weight.scale.float()
        self.zero = self.weight.zero.float()[..., None]
        self.factor = nn.Parameter(torch.zeros_like(self.start))

    @property
    def scale(self) -> Tensor:
        """Scales ``(rows, groups)`` as they are stored; their gradient is that before rounding."""
        exact = self.start * self.factor.exp()
        short = exact.detach()
        if self.spec.short_scales:
            short = stored(short, self.spec)
        return short.to(held_as(self.spec)).float() + (exact - exact.detach())

    def found(self, latent: Tensor) -> QuantizedWeight:
        """The quantised weight as it stands; ``latent`` is what :meth:`forward` is given."""
        codes = self.rounded(latent).detach().flatten(1).to(torch.uint8)
        scale = self.scale.detach().to(held_as(self.spec))
        return replace(self.weight, codes=codes, scale=scale).to(torch.device("cpu"))

    def rounded(self, latent: Tensor) -> Tensor:
        raise NotImplementedError


class FixedCodes(_Grid):
    """Codes and zero points stay; scales are learnt."""

    def rounded(self, latent: Tensor) -> Tensor:
        """The codes of the start."""
        return by_group(self.weight.codes.float(), self.spec)

    def forward(self, latent: Tensor) -> Tensor:
        """The dense weight; ``latent``, the layer's own, is passed over."""
        found = decode(self.rounded(latent), self.scale[..., None], self.zero, self.spec)
        return self.weight.restored(found.flatten(1))


class ThroughRounding(_Grid):
    """Codes are those nearest to a latent weight, whose gradient passes the rounding as if it were not there.

    The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432); where a latent weight is off the
    grid's range it has no gradient, and the scale's is that of learned step size (Esser et al. 2020).
    """

    def rounded(self, latent: Tensor) -> Tensor:
        """Nearest codes."""
        return encode(self._grouped(latent), self.scale[..., None], self.zero, self.spec)

    def forward(self, latent: Tensor) -> Tensor:
        """The dense weight of the nearest codes."""
        scale = self.scale[..., None]
        shift = self.zero if self.spec.grid == "uniform" else 0.0
        exact = self._within(self._grouped(latent) / scale + shift) - shift
        nearest = offsets(self.rounded(latent), self.zero, self.spec).detach()
        return self.weight.restored(((nearest + (exact - exact.detach())) * scale).flatten(1))

    def _within(self, place: Tensor) -> Tensor:
        """Clamped to the grid's ends, which have a gradient, too; versions of torch do not agree on that."""
        low, *_, high = levels(self.spec).tolist() or (0, self.spec.max_code)
        inside = (place >= low) & (place <= high)
        return torch.where(inside, place, place.detach().clamp(low, high))

    def _grouped(self, latent: Tensor) -> Tensor:
        return by_group(self.weight.transformed(latent), self.spec)


class QuantisedLayers:
    """The quantised layers of a tower while their grids are learnt."""

    def __init__(self, grids: Mapping[str, list[tuple[nn.Module, _Grid]]]) -> None:
        self._grids = grids

    @property
    def factors(self) -> list[nn.Parameter]:
        """The logarithms of the scales' factors, to be learnt."""
        return [grid.factor for layers in self._grids.values() for _, grid in layers]

    @property
    def latents(self) -> list[nn.Parameter]:
        """The layers' own weights."""
        return [_latent(module) for layers in self._grids.values() for module, _ in layers]

    def found(self) -> dict[str, QuantizedWeight]:
        """Every group's quantised weight as it stands."""
        return {
            name: _joined([grid.found(_latent(module)) for module, grid in layers])
            for name, layers in self._grids.items()
        }


def _latent(module: Any) -> nn.Parameter:
    latent: nn.Parameter = module.parametrizations.weight.original
    return latent


@contextmanager
def learnt_grids(
    tower: Tower, quantised: Mapping[str, QuantizedWeight], kind: type[_Grid]
) -> Iterator[QuantisedLayers]:
    """While it lasts, weights come from grids; afterwards the layers hold the dense weights they came to.

    Args:
        quantised: the quantised weight of every group of layers that has one, by its name.

    Raises:
        UserError: a quantised weight is used in two places, as a tied embedding is.
    """
    groups = layer_groups(tower, ",".join(quantised)) if quantised else {}
    grids: dict[str, list[tuple[nn.Module, _Grid]]] = {}
    for name, (part, paths) in groups.items():
        modules = [tower.get_submodule(f"{part}.{path}") for path in paths]
        sizes = [len(tower.get_parameter(f"{part}.{path}.weight")) for path in paths]
        ends = list(accumulate(sizes, initial=0))
        parts = [quantised[name][slice(*ends)] for ends in pairwise(ends)]
        rows = zip(modules, parts, strict=True)
        grids[name] = [(module, kind(weight, next(module.parameters()).device)) for module, weight in rows]
    _refuse_shared(tower, {name: [module for module, _ in pairs] for name, pairs in grids.items()})
    pairs = [pair for layers in grids.values() for pair in layers]
    for module, grid in pairs:
        parametrize.register_parametrization(module, "weight", grid, unsafe=True)
    try:
        yield QuantisedLayers(grids)
    finally:
        for module, _ in pairs:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _refuse_shared(tower: Tower, modules: Mapping[str, list[nn.Module]]) -> None:
    places: dict[int, int] = {}
    for _, parameter in tower.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    for name, layers in modules.items():
        if any(places[id(layer.weight)] > 1 for layer in layers):
            raise UserError(
                f"layer {name!r} shares its weight with another one, so its grid cannot be refined; leave it "
                "out of --layers"
            )


def _joined(parts: list[QuantizedWeight]) -> QuantizedWeight:
    found = stacked(parts)
    if found is None:
        raise UserError("the layers of one group have scales too far apart for E4M3; use another format")
    return found
