"""Which layers of a tower are quantised: groups of linear layers by name, chosen by patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase

from epmq.errors import UserError
from epmq.models.tower import SharedInput, Tower


def layer_groups(tower: Tower, pattern: str = "*") -> dict[str, tuple[str, SharedInput]]:
    """Part and paths of every layer group whose name matches, by name, in the order of the walk.

    ``pattern`` is one or several, parted by commas. Embeddings and the output layer are matched only by a
    pattern that begins with their part's name (``stem.shared``, ``head.*``): they stay in full precision
    by default, as the field leaves them.

    Raises:
        UserError: nothing matches.
    """
    named: dict[str, tuple[str, SharedInput]] = {}
    for i, groups in enumerate(tower.groups):
        named |= {group_name(f"blocks.{i}", group): (f"blocks.{i}", group) for group in groups}
    outer = {path: (path.partition(".")[0], (path.partition(".")[2],)) for path in tower.outer}
    found: dict[str, tuple[str, SharedInput]] = {}
    for each in pattern.split(","):
        if not (matching := [n for n in {**outer, **named} if _matches(n, each.strip(), n in outer)]):
            first = next(iter(named))
            raise UserError(f"layers {each.strip()!r} matches no layer; the first is {first!r}")
        found |= {name: {**outer, **named}[name] for name in matching}
    order = [*(n for n in outer if n.startswith("stem.")), *named, *outer]
    return {name: found[name] for name in order if name in found}


def _matches(name: str, pattern: str, outer: bool) -> bool:
    part = name.partition(".")[0]
    return fnmatchcase(name, pattern) and (not outer or pattern.startswith(f"{part}."))


def group_name(part: str, group: SharedInput) -> str:
    """The name of a group in a part of a tower: ``blocks.0.attn.q+attn.k``."""
    return f"{part}." + "+".join(group)
