"""What a board says of a method or merge besides its numbers, and where its paper and source are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_DOI = re.compile(r"(?:doi:|DOI:)(10\.\d{4,9}/\S+)")


@dataclass(frozen=True)
class About:
    """One registered or contributed name.

    Attributes:
        family: what kind of method it is.
        reference: where it is described: an arXiv id, a DOI, an address or words.
        code: where its code is: a file of the repository, an address, or a package and its version.
        source: the file that ``code`` names, which a board carries along; None where it has none.
    """

    name: str
    family: str
    summary: str
    reference: str
    code: str = ""
    source: Path | None = None


@dataclass(frozen=True)
class Registered:
    """What is registered, by name: methods (with roundings and controls) and merges."""

    methods: Mapping[str, About] = field(default_factory=dict)
    merges: Mapping[str, About] = field(default_factory=dict)


def address(reference: str) -> str | None:
    """The address of a paper, or of whatever else is at one; None for words.

    Only https and http are addresses, so that nothing that a stranger writes can run.
    """
    if paper := _ARXIV.fullmatch(reference):
        return f"https://arxiv.org/abs/{paper[1]}"
    if paper := _DOI.fullmatch(reference):
        return f"https://doi.org/{quote(paper[1], safe='/')}"
    try:
        parts = urlsplit(reference)
    except ValueError:
        return None
    return reference if parts.scheme in ("https", "http") and parts.netloc else None
