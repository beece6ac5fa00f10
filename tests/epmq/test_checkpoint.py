"""Checkpoints: read lazily, refused when damaged or when they do not fit."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from epmq.checkpoints.lazy import LazyCheckpoint, check_expert, check_finite, prefix_of, sha256, weights_file
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
    checkpoint = LazyCheckpoint(file, "visual.", without={"proj"})
    assert set(checkpoint) == {"bias"}
    assert len(checkpoint) == 1
    with pytest.raises(KeyError):
        checkpoint["proj"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_keep_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    save_file(stored, tmp_path / "model.safetensors")
    found = dict(LazyCheckpoint(tmp_path / "model.safetensors"))
    assert all(found[name].dtype == dtype and torch.equal(found[name], stored[name]) for name in stored)


def shards(folder: Path) -> Path:
    """STATE in two files and their index."""
    names = {"visual.proj": 1, "visual.bias": 2, "text.proj": 2}
    for number in (1, 2):
        part = {name: STATE[name] for name in names if names[name] == number}
        save_file(part, folder / f"model-0000{number}-of-00002.safetensors")
    index = {
        "weight_map": {name: f"model-0000{number}-of-00002.safetensors" for name, number in names.items()}
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    index = shards(tmp_path)
    for where in (index, tmp_path):
        found = LazyCheckpoint(where)
        assert found.path == index
        assert dict(found).keys() == STATE.keys()
        assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_a_missing_shard_or_a_damaged_index_is_named(tmp_path: Path) -> None:
    index = shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: no such checkpoint file"):
        LazyCheckpoint(index)
    for text in ("{", "[]", '{"weight_map": 1}', "{}"):
        index.write_text(text)
        with pytest.raises(UserError, match=r"index\.json: is not an index of safetensors files; download"):
            LazyCheckpoint(index)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "optimizer.pt", "config.json"], "model.safetensors"),
        (["model.safetensors.index.json", "model-1.safetensors"], "model.safetensors.index.json"),
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
        (["nonlinear_finetuned.pt", "nonlinear_zeroshot.pt"], "nonlinear_finetuned.pt"),
        (["mnist.safetensors", "README.md"], "mnist.safetensors"),
    ],
)
def test_a_folders_weights_are_found(names: list[str], chosen: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert weights_file(tmp_path) == weights_file(tmp_path, names) == tmp_path / chosen


def test_only_named_files_of_a_folder_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert weights_file(tmp_path, ["pytorch_model.bin"]) == tmp_path / "pytorch_model.bin"


def test_a_folder_without_clear_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no weights; expected one of model\.safetensors, "):
        weights_file(tmp_path)
    with pytest.raises(UserError, match=r"holds a\.pt, b\.pt; name the right one model\.safetensors"):
        weights_file(tmp_path, ["a.pt", "b.pt"])


def test_nothing_of_a_file_stays_mapped_or_shared(file: Path) -> None:
    """The walk reads 20 experts tensor by tensor; a mapping that stays would count each as resident."""
    checkpoint = LazyCheckpoint(file)
    tensor = checkpoint["visual.proj"]
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(file) not in maps.read_text()
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.resolve() == file]
    with file.open("r+b") as raw:
        raw.seek(-48, 2)  # the bytes of all tensors
        raw.write(bytes(48))
    assert torch.equal(tensor, STATE["visual.proj"])
    assert torch.equal(checkpoint["visual.proj"], torch.zeros(2, 3))


READ_ALL = """
import resource, sys
from epmq.checkpoints.lazy import LazyCheckpoint
for paths in (sys.argv[1:3], sys.argv[1:]):
    checkpoints = [LazyCheckpoint(path) for path in paths]
    for name in checkpoints[0]:
        for checkpoint in checkpoints:
            checkpoint[name].sum()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_memory_does_not_grow_with_the_number_of_checkpoints(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((2**19,), float(i)) for i in range(8)}  # 16 MiB a file
    files = [str(tmp_path / f"{i}.safetensors") for i in range(10)]
    for file in files:
        save_file(tensors, file)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *files], check=True, capture_output=True, text=True
    )
    of_two, of_ten = map(int, done.stdout.split())
    assert of_ten - of_two < 2**23


def test_a_checkpoint_can_be_sent_to_another_process(file: Path) -> None:
    sent = pickle.loads(pickle.dumps(LazyCheckpoint(file, "visual.")))
    assert torch.equal(sent["proj"], STATE["visual.proj"])


def test_a_file_that_changed_since_is_named_on_reading(file: Path) -> None:
    checkpoint = LazyCheckpoint(file)
    save_file({"other": torch.ones(1)}, file)
    with pytest.raises(UserError, match=r"model\.safetensors: is corrupt, truncated or not safetensors"):
        checkpoint["visual.proj"]


@pytest.mark.parametrize("prefix", ["", "vision_model.", "model.visual."])
def test_the_prefix_of_a_tower_is_found(prefix: str) -> None:
    wanted = ["blocks.0.w", "blocks.1.w", "stem.w"]
    beside = ["text.blocks.0.w", "text.blocks.2.w", "text.stem.bias", "scale"]
    assert prefix_of([*beside, *(prefix + name for name in wanted)], wanted, "expert") == prefix
    assert (
        prefix_of([*beside, prefix + "stem.w", prefix + "blocks.0.w", prefix + "extra"], wanted, "x")
        == prefix
    )


def test_a_checkpoint_without_the_tower_is_named() -> None:
    with pytest.raises(UserError, match=r"^gpt: no tensor is named like 'stem\.w', only like 'wte'; is it"):
        prefix_of(["wte", "xstem.w"], ["stem.w"], "gpt")


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
        case "empty folder":
            path.unlink()
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
        ("empty folder", "holds no weights; expected one of model.safetensors, "),
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


def test_integer_buffers_may_be_in_one_and_not_in_the_other() -> None:
    check_expert(BASE, without(EXPERT, "position_ids"), "expert.safetensors")
    check_expert(without(BASE, "position_ids"), EXPERT, "expert.safetensors")


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


def image_tower(blocks: int, width: int, patch: int) -> dict[str, Tensor]:
    inside = {f"encoder.layers.{i}.fc.weight": torch.full((2, 2), float(i)) for i in range(blocks)}
    return {"patch_embedding.weight": torch.zeros(width, 3, patch, patch), **inside}


@pytest.mark.parametrize("other", [(4, 8, 2), (3, 8, 2), (4, 8, 4), (4, 6, 4)], ids=str)
def test_an_expert_of_another_architecture_is_said_to_be_one(other: tuple[int, int, int], file: Path) -> None:
    """B/32 and L/14 share every tensor name of the smaller one."""
    save_file(image_tower(*other), file)
    for expert in (LazyCheckpoint(file), image_tower(*other)):
        message = (
            rf"has {other[0]} blocks, width {other[1]} and patches of {other[2]}, the base has 3 blocks, "
        )
        with pytest.raises(UserError, match=message + "width 6 and patches of 4: another architecture; give"):
            check_expert(image_tower(3, 6, 4), expert, "mnist")


def test_an_expert_on_disk_is_read_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(EXPERT, file)
    reads: list[str] = []
    read = LazyCheckpoint.__getitem__

    def counted(self: LazyCheckpoint, name: str) -> Tensor:
        reads.append(name)
        return read(self, name)

    monkeypatch.setattr(LazyCheckpoint, "__getitem__", counted)
    check_expert(BASE, LazyCheckpoint(file), "expert")
    assert sorted(reads) == sorted(EXPERT)


def test_a_damaged_base_is_named() -> None:
    check_finite(BASE, "base")
    with pytest.raises(UserError, match=r"^base: tensor 'b' holds NaN or Inf"):
        check_finite({**BASE, "b": torch.tensor([torch.nan])}, "base")


def test_the_digest_is_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
