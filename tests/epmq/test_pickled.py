"""Legacy pickles: converted without running code, once, into a copy that is trusted by hash."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from epmq.checkpoints.lazy import LazyCheckpoint, sha256
from epmq.checkpoints.pickled import converted
from epmq.errors import UserError

pytestmark = pytest.mark.keeps_rng
STATE = {"w": torch.arange(6.0).view(2, 3), "h": torch.ones(2).half(), "ids": torch.arange(3)}


def pickled(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "training checkpoint"])
def test_a_pickled_state_dict_becomes_safetensors(
    legacy: bool, wrapped: bool, cache: Path, tmp_path: Path
) -> None:
    content = {"epoch": 3, "state_dict": STATE} if wrapped else STATE
    source = pickled(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    found = LazyCheckpoint(converted(source, cache))
    assert dict(found).keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tied_and_strided_tensors_are_stored_in_full(cache: Path, tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"a": weight, "tied": weight, "turned": weight.T, "row": weight[1]}
    found = load_file(converted(pickled(state, tmp_path / "m.pt"), cache))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


class RunsCode:
    """Pickles as a call, as whole models and hostile files do."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_a_pickle_that_needs_code_is_refused_and_not_run(legacy: bool, cache: Path, tmp_path: Path) -> None:
    content = {"w": RunsCode(tmp_path / "ran")}
    source = pickled(content, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"m\.pt: loading this pickle would run code, which is refused; save"):
        converted(source, cache)
    assert not (tmp_path / "ran").exists()
    assert not cache.exists()


def test_a_pickled_model_is_refused(cache: Path, tmp_path: Path) -> None:
    source = pickled(torch.nn.ReLU(), tmp_path / "m.pt")
    with pytest.raises(UserError, match="loading this pickle would run code, which is refused; save the mod"):
        converted(source, cache)


@pytest.mark.parametrize("content", [{"w": 1.0}, [torch.ones(1)], {"state_dict": {"w": "x"}}], ids=str)
def test_other_content_is_refused(content: Any, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no state dict"):
        converted(pickled(content, tmp_path / "m.pt"), cache)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("kept", [0, 40, 400])
def test_a_truncated_pickle_is_named(legacy: bool, kept: int, cache: Path, tmp_path: Path) -> None:
    source = pickled(STATE, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    source.write_bytes(source.read_bytes()[:kept])
    with pytest.raises(
        UserError, match=r"m\.pt: (is corrupt or truncated|loading this pickle would)"
    ) as caught:
        converted(source, cache)
    assert "\n" not in str(caught.value)


def test_the_copy_is_made_once_and_again_for_a_changed_source(cache: Path, tmp_path: Path) -> None:
    source = pickled(STATE, tmp_path / "m.pt")
    copy = converted(source, cache)
    made = copy.stat().st_mtime_ns
    assert converted(source, cache) == copy
    assert copy.stat().st_mtime_ns == made
    pickled({"w": torch.zeros(1)}, source)
    assert torch.equal(load_file(converted(source, cache))["w"], torch.zeros(1))
    assert torch.equal(load_file(copy)["w"], STATE["w"])


@pytest.mark.parametrize("metadata", [None, {}, {"source_sha256": "0" * 64}], ids=str)
def test_a_copy_of_another_source_is_not_trusted(
    metadata: dict[str, str] | None, cache: Path, tmp_path: Path
) -> None:
    source = pickled(STATE, tmp_path / "m.pt")
    cache.mkdir()
    planted = cache / f"{sha256(source)}.safetensors"
    if metadata is None:
        planted.write_bytes(b"half a file")
    else:
        save_file({"w": torch.zeros(2, 3)}, planted, metadata)
    assert torch.equal(load_file(converted(source, cache))["w"], STATE["w"])


def test_a_failed_write_leaves_nothing(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    source = pickled(STATE, tmp_path / "m.pt")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        converted(source, cache)
    assert list(cache.iterdir()) == []
