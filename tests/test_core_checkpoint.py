"""Checkpoints: read lazily, refused when damaged or when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from epmq.checkpoint import LazyCheckpoint, Without, check_expert, sha256
from epmq.errors import UserError

pytestmark = pytest.mark.keeps_rng
STATE = {"visual.proj": torch.ones(2, 3), "visual.bias": torch.zeros(2), "text.proj": torch.ones(4)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_checkpoint_is_a_mapping_of_its_tensors(file: Path) -> None:
    checkpoint = LazyCheckpoint(file)
    assert dict(checkpoint).keys() == STATE.keys()
    assert len(checkpoint) == 3
    assert torch.equal(checkpoint["visual.proj"], STATE["visual.proj"])
    assert checkpoint.shape("text.proj") == (4,)
    with pytest.raises(KeyError):
        checkpoint["missing"]


def test_a_prefix_selects_and_is_stripped(file: Path) -> None:
    checkpoint = LazyCheckpoint(file, prefix="visual.")
    assert set(checkpoint) == {"proj", "bias"}
    assert checkpoint.shape("proj") == (2, 3)
    with pytest.raises(KeyError):
        checkpoint["text.proj"]


def test_names_can_be_left_out(file: Path) -> None:
    checkpoint = Without(LazyCheckpoint(file), frozenset({"text.proj"}))
    assert set(checkpoint) == {"visual.proj", "visual.bias"}
    assert len(checkpoint) == 2
    with pytest.raises(KeyError):
        checkpoint["text.proj"]


def spoiled(kind: str, path: Path) -> Path:
    """Overwrite ``path`` with an unusable checkpoint of some kind and return what to open."""
    match kind:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-4])
        case "header cut":
            path.write_bytes(path.read_bytes()[:20])
        case "garbage":
            path.write_bytes(b"\xff" * 100)
        case "empty":
            path.write_bytes(b"")
        case "web page":
            path.write_text("<html>404</html>")
        case "pickle":
            torch.save(STATE, path)
        case "legacy pickle":
            torch.save(STATE, path, _use_new_zipfile_serialization=False)
        case "folder":
            return path.parent
        case "missing":
            path.unlink()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "corrupt, truncated or not safetensors .*; download or export it again"),
        ("header cut", "corrupt, truncated or not safetensors .*; download or export it again"),
        ("garbage", "corrupt, truncated or not safetensors .*; download or export it again"),
        ("empty", "corrupt, truncated or not safetensors .*; download or export it again"),
        ("web page", "corrupt, truncated or not safetensors .*; download or export it again"),
        ("pickle", "pickled checkpoint, which can run code; convert it to safetensors"),
        ("legacy pickle", "pickled checkpoint, which can run code; convert it to safetensors"),
        ("folder", "is a folder; give the .safetensors file in it"),
        ("missing", "no such checkpoint file; check the path"),
    ],
)
def test_an_unusable_file_is_named_with_the_remedy(kind: str, message: str, file: Path) -> None:
    path = spoiled(kind, file)
    with pytest.raises(UserError, match=message) as caught:
        LazyCheckpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_prefix_that_nothing_has_is_named(file: Path) -> None:
    with pytest.raises(UserError, match=r"no tensor name starts with 'vision\.'; is it the right model"):
        LazyCheckpoint(file, prefix="vision.")


BASE = {"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([0.5]), "position_ids": torch.arange(3)}
EXPERT = {**BASE, "w": torch.tensor([[1.0, 2.5]])}


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


def test_a_fine_tuned_expert_is_accepted() -> None:
    check_expert(BASE, EXPERT, "expert.safetensors")
    check_expert(BASE, {name: tensor.half() for name, tensor in EXPERT.items()}, "expert.safetensors")


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (without(EXPERT, "b"), r"tensor 'b' is missing \(1 in all\); give an expert"),
        ({**EXPERT, "c": torch.ones(1)}, r"tensor 'c' is not in the base \(1 in all\); give an expert"),
        ({**EXPERT, "b": torch.ones(2)}, r"tensor 'b' is \(2,\), the base's is \(1,\); give an expert"),
        ({**EXPERT, "b": torch.tensor([torch.nan])}, "tensor 'b' holds NaN or Inf; the checkpoint is dam"),
        ({**EXPERT, "b": torch.tensor([torch.inf])}, "tensor 'b' holds NaN or Inf; the checkpoint is dam"),
        (dict(BASE), "every tensor equals the base's; give an expert"),
        ({**BASE, "position_ids": torch.arange(1, 4)}, "every tensor equals the base's; give an expert"),
    ],
)
def test_an_expert_that_does_not_fit_is_named(expert: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_expert(BASE, expert, "mnist.safetensors")
    assert str(caught.value).startswith("mnist.safetensors: ")
    assert "\n" not in str(caught.value)


def test_a_damaged_base_is_named_and_not_the_expert() -> None:
    with pytest.raises(UserError, match=r"^base: tensor 'b' holds NaN or Inf"):
        check_expert({**BASE, "b": torch.tensor([torch.nan])}, EXPERT, "mnist.safetensors")


def test_the_digest_is_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
