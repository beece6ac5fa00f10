"""Experts as checkpoints: read from wherever they are stored, checked, and of use to the front door."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import epmq
from tests.fixtures import tiny_clip, tiny_lm
from tests.fixtures.tiny_clip import State

TASKS = ("fruit", "birds")


@pytest.fixture
def model() -> Any:
    return tiny_clip.model()


@pytest.fixture
def experts(model: Any) -> dict[str, State]:
    return tiny_clip.whole_experts(model, TASKS)


def adapter(folder: Path, base: State, seed: int) -> State:
    """Write a LoRA adapter of a causal language model's query projections; returns the adapted tensors."""
    g, adapted = torch.Generator().manual_seed(seed), dict(base)
    written: State = {}
    for name in [n for n in base if "q_proj" in n]:
        rows, columns = base[name].shape
        a, b = torch.randn(2, columns, generator=g), torch.randn(rows, 2, generator=g)
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        written |= {f"{stem}A.weight": a, f"{stem}B.weight": b}
        adapted[name] = base[name] + 2 * b @ a
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(written, folder / "adapter_model.safetensors")
    return adapted


def test_experts_are_read_from_files_folders_pickles_and_adapters(tmp_path: Path) -> None:
    built = tiny_lm.tiny_lm().train()
    states = tiny_lm.experts(built, ["file", "folder", "pickle"])
    save_file(states["file"], tmp_path / "file.safetensors")
    (tmp_path / "folder").mkdir()
    save_file(states["folder"], tmp_path / "folder" / "model.safetensors")
    torch.save(states["pickle"], tmp_path / "pickle.pt")
    states["adapter"] = adapter(tmp_path / "adapter", tiny_lm.weights(built), 7)
    where = {"adapter": "adapter", "file": "file.safetensors", "folder": "folder", "pickle": "pickle.pt"}
    found = epmq.load_experts(built, {task: tmp_path / name for task, name in where.items()})
    assert list(found) == list(where)
    assert built.training
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()  # what a merge does to a model must not reach its adapters
    for task, expert in found.items():
        assert expert.keys() == states[task].keys()
        for name, tensor in states[task].items():
            torch.testing.assert_close(expert[name], tensor, rtol=1e-6, atol=1e-6)


def test_experts_of_files_quantise_like_experts_in_memory(
    model: Any, experts: dict[str, State], tmp_path: Path
) -> None:
    for task, state in experts.items():
        save_file(state, tmp_path / f"{task}.safetensors")
    stored = epmq.load_experts(model, {task: str(tmp_path / f"{task}.safetensors") for task in experts})
    g, side = torch.Generator().manual_seed(4), tiny_clip.IMAGE
    images = {task: torch.randn(9, 3, side, side, generator=g) for task in TASKS}
    models = copy.deepcopy(model), model
    epmq.quantise(models[0], experts, images, "epmq", merge="task-arithmetic")
    epmq.quantise(models[1], stored, images, "epmq", merge="task-arithmetic")
    one, other = (each.state_dict() for each in models)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: does not exist; give the file or the folder of an expert"),
        ("empty", "empty: holds no weights; expected one of model.safetensors"),
        ("base.safetensors", "base.safetensors: every tensor equals the base's"),
        ("damaged.safetensors", "damaged.safetensors: is corrupt, truncated or not safetensors"),
    ],
)
def test_what_is_no_expert_is_refused(name: str, message: str, model: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.safetensors").write_bytes(b"12345678 nothing")
    save_file(tiny_clip.tensors(model), tmp_path / "base.safetensors")
    with pytest.raises(epmq.UserError, match=re.escape(message)):
        epmq.load_experts(model, {"fruit": tmp_path / name})
