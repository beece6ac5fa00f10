"""A text suite's models: the base language model as a tower, its tokenizer, experts (full or LoRA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from benchmarks.sources.fetch import Fetched, Sources
from benchmarks.sources.resolve import model_files
from benchmarks.sources.weights import configured, readable
from benchmarks.suites.forms import TextSuite
from benchmarks.workbench.base import Models
from epmq.checkpoints.lazy import LazyCheckpoint, check_expert, check_finite
from epmq.checkpoints.lora import CONFIG, lora_merged
from epmq.errors import UserError
from epmq.experts import merged_tensors
from epmq.models import causal_lm, t5
from epmq.models.tower import Tower


@dataclass(frozen=True)
class TextModels(Models):
    """The models of a text suite; the tower quantises ``tower.model`` in place.

    Attributes:
        tokenizer: the base's, for every model.
    """

    tokenizer: Any


def open_models(suite: TextSuite, sources: Sources) -> TextModels:
    """Open a suite's models; every expert is read once and checked against the base.

    Raises:
        UserError: a model is missing, damaged, of another architecture, not the pinned one, its tokenizer
            does not match, or an expert does not fit the base.
    """
    origin = sources.model(suite.base, model_files(suite, suite.base))
    fetched = {t.task: sources.model(t.expert, model_files(suite, t.expert)) for t in suite.tasks}
    weights = readable(origin.folder, origin.files)
    stored = LazyCheckpoint(weights)
    config, tokenizer = _configuration(suite, origin.folder)
    tower = _tower(suite, config, stored)
    _check_tokenizer(tokenizer, tower, origin.folder)
    base = merged_tensors(weights, tower, str(origin.folder))
    tower.load_all(base)
    check_finite(base, suite.base)
    experts = {task: _expert(found, base, tower) for task, found in fetched.items()}
    for task, found in tqdm(fetched.items(), desc="checking experts", leave=False, delay=2):
        check_expert(base, experts[task], str(found.folder))
    revisions = {"base": origin.revision, "experts": {task: x.revision for task, x in fetched.items()}}
    return TextModels(tower, base, experts, revisions, tokenizer)


def _configuration(suite: TextSuite, folder: Path) -> tuple[Any, Any]:
    config, tokenizer = configured(folder)
    if bool(config.is_encoder_decoder) != (suite.architecture == "encoder-decoder"):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "a decoder-only model"
        raise UserError(
            f"{folder / 'config.json'}: describes {kind} ({config.model_type}), the suite {suite.name} needs "
            f"{suite.architecture}; give another base"
        )
    return config, tokenizer


def _tower(suite: TextSuite, config: Any, stored: LazyCheckpoint) -> Tower:
    """The model of a configuration as a tower, its weights not yet loaded."""
    kind = AutoModelForSeq2SeqLM if suite.architecture == "encoder-decoder" else AutoModelForCausalLM
    if suite.architecture == "encoder-decoder" and config.model_type != "t5":
        raise UserError(f"{stored.path.parent}: a {config.model_type} model is not supported; need a T5")
    # Eager attention is what the walk's blocks compute; the configuration's dtype is that of its files.
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator
        model = kind.from_config(config, attn_implementation="eager", dtype=torch.float32)
    model = model.eval().requires_grad_(False)
    if suite.architecture == "causal":
        return causal_lm.tower(model)
    if t5.has_own_output(stored):
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight), requires_grad=False)
    return t5.tower(model)


def _check_tokenizer(tokenizer: Any, tower: Tower, folder: Path) -> None:
    rows = next(tower.stem.parameters()).shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows; "
            "give the model its own tokenizer"
        )
    for name in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(tokenizer, name), getattr(tower.model.config, name)
        known = theirs if isinstance(theirs, list) else [theirs]
        if theirs is not None and ours not in known:
            raise UserError(
                f"{folder}: the tokenizer's {name} is {ours}, config.json says {theirs}; give the model its "
                "own tokenizer"
            )


def _expert(found: Fetched, base: Mapping[str, Tensor], tower: Tower) -> Mapping[str, Tensor]:
    """A full expert as it is stored; a LoRA expert merged into the base."""
    if CONFIG in found.files:
        return lora_merged(base, found.folder)
    return merged_tensors(readable(found.folder, found.files), tower, str(found.folder))
