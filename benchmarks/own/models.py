"""Models of one's own: folders, or repositories of the hub at a revision, and which kind the base is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset

from benchmarks.sources import hub, resolve
from benchmarks.sources.fetch import Fetched, Sources
from benchmarks.sources.hub import Listing
from benchmarks.sources.weights import refuse_code
from benchmarks.suites.forms import TaskSpec
from benchmarks.suites.towers import TextTowerSpec, TowerSpec
from epmq.checkpoints.described import json_object
from epmq.errors import UserError
from epmq.models.causal_lm import FAMILIES

Architecture = Literal["encoder-decoder", "causal"]
CONFIG, OPEN_CLIP = "config.json", "open_clip_config.json"
SUPPORTED = ("clip", "t5", *FAMILIES)
_ID, _REVISION = re.compile(r"\w[\w.-]*/[\w.-]+"), re.compile(r"[\w./-]*")
AGAIN = "get it again"
TOKENS = 128  # a guess at a prompt's length, for plans alone


@dataclass(frozen=True)
class Place:
    """A repository of the hub, at a branch, tag or commit (``None``: the newest)."""

    repo: str
    revision: str | None

    @classmethod
    def of(cls, where: str, what: str) -> Place:
        """From ``owner/name`` or ``owner/name@revision``; raises UserError for anything else."""
        repo, _, revision = where.partition("@")
        if not _ID.fullmatch(repo) or not _REVISION.fullmatch(revision):
            raise UserError(
                f"{what}: {where[:100]!r} is neither there nor a hub id such as owner/name or "
                "owner/name@revision; correct it"
            )
        return cls(repo, revision or None)


class OwnSources(Sources):
    """Models by folder or hub id. The hub is asked once, so that what was planned is what is read."""

    def __init__(self) -> None:
        self._listed: dict[Place, Listing] = {}

    def listed(self, place: Place) -> Listing:
        """What a repository holds; raises UserError."""
        if place not in self._listed:
            self._listed[place] = hub.listing(place.repo, "model", place.revision)
        return self._listed[place]

    def model(self, where: str, patterns: Sequence[str]) -> Fetched:
        if Path(where).is_dir():
            return self._local(Path(where), patterns)
        found = self.listed(Place.of(where, "model"))
        repo = resolve.of_listing(found, patterns)
        return Fetched(hub.fetch(repo, "model"), repo.revision, repo.files)

    def verify(self, task: TaskSpec, split: str, rows: Dataset) -> None:
        """Nothing is pinned."""

    def _compare(self, file: Path, found: str) -> None:
        """Nothing is pinned."""

    def configuration(self, where: str) -> Path:
        """The folder with a base's configuration, which is all that is downloaded of it."""
        if Path(where).is_dir():
            return Path(where)
        found = self.listed(Place.of(where, "base"))
        names = [name for name in (CONFIG, OPEN_CLIP) if name in found.sizes]
        if not names:
            raise UserError(f"base: {where} holds neither {CONFIG} nor {OPEN_CLIP}; give a whole model")
        return hub.fetch(hub.described(found, "model", names), "model")


@dataclass(frozen=True)
class Form:
    """What kind of model a base is.

    Attributes:
        library: whose layout it has.
        architecture: of a language model.
        tower: its size, for plans; ``None`` where a plan has no estimates for it.
        hidden: numbers a token, where there is no such size.
    """

    library: Literal["transformers", "open_clip"]
    architecture: Architecture | None
    tower: TowerSpec | TextTowerSpec | None
    hidden: int | None = None

    @property
    def width(self) -> int | None:
        """Columns of most of its matrices."""
        return self.hidden if self.tower is None else self.tower.width

    @property
    def kind(self) -> Literal["clip", "text"]:
        return "clip" if self.architecture is None else "text"


def form_of(folder: Path) -> Form:
    """The form of a base by its configuration.

    Raises:
        UserError: there is none, it is damaged, names code, or describes a model that is not supported.
    """
    refuse_code(folder)
    kind = json_object(folder / CONFIG, AGAIN).get("model_type") if (folder / CONFIG).is_file() else None
    if kind == "clip":
        return Form("transformers", None, _of_clip(folder))
    if kind == "t5":
        return Form("transformers", "encoder-decoder", _of_t5(folder))
    if kind in FAMILIES:
        return Form("transformers", "causal", None, getattr(_configured(folder), "hidden_size", None))
    if (folder / OPEN_CLIP).is_file():
        return Form("open_clip", None, _of_open_clip(folder / OPEN_CLIP))
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"base: {folder} holds neither {CONFIG} nor {OPEN_CLIP}; give the folder of a whole model"
        )
    raise UserError(
        f"base: {folder / CONFIG} describes a model of type {kind!r}, expected one of {', '.join(SUPPORTED)}"
    )


def _of_clip(folder: Path) -> TowerSpec:
    vision = _configured(folder).vision_config
    return TowerSpec(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        mlp_width=vision.intermediate_size,
    )


def _of_open_clip(file: Path) -> TowerSpec | None:
    """The size of a vision transformer; ``None`` for another tower, which opening it will refuse."""
    vision = json_object(file, AGAIN).get("model_cfg", {}).get("vision_cfg", {})
    try:
        return TowerSpec(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            width=vision["width"],
            layers=vision["layers"],
            mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4.0)),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _of_t5(folder: Path) -> TextTowerSpec:
    config = _configured(folder)
    return TextTowerSpec(
        width=config.d_model,
        inner_width=config.d_kv * config.num_heads,
        mlp_width=config.d_ff,
        layers=config.num_layers + (config.num_decoder_layers or config.num_layers),
        vocabulary=config.vocab_size,
        tokens=TOKENS,
    )


def _configured(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a configuration that does not hold together raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{folder / CONFIG}: cannot be read by transformers ({reason}); get it again"
        ) from error


def refuse_absent(where: str, what: str) -> None:
    """Refuse what is neither a folder nor a hub id; raises UserError."""
    if Path(where).is_file():
        raise UserError(f"{what}: {where} is a file; give the folder of the model")
    if not Path(where).is_dir():
        Place.of(where, what)
