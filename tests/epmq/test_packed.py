"""Checkpoint folders: what is read is what was written, in every format; nothing is left half-written."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import baselines
import epmq
from epmq.errors import UserError
from epmq.packed import writing
from epmq.packed.pack_quantized import pack_rows, unpack_rows
from epmq.packed.reading import Checkpoint
from tests.fixtures import tiny_clip, tiny_lm, tiny_t5
from tests.fixtures.tiny_suite import make_visual

ROOT = Path(__file__).parents[2]
FORMATS = ("compressed-tensors", "dense", "epmq")
KINDS = ("clip", "open_clip", "t5", "llama", "tied llama")


def case(kind: str) -> tuple[Any, Any, Any]:
    """A model, experts and calibration inputs."""
    if kind == "open_clip":
        made = make_visual()
        return made.visual, made.experts, made.inputs
    if kind == "clip":
        model = tiny_clip.model()
        state = tiny_clip.tensors(model)
        g = torch.Generator().manual_seed(0)
        images = {task: torch.randn(8, 3, 16, 16, generator=g) for task in "ab"}
        return model, {task: tiny_clip.expert(state, i) for i, task in enumerate(images)}, images
    fixture: Any = tiny_t5 if kind == "t5" else tiny_lm
    model = tiny_t5.tiny_t5() if kind == "t5" else tiny_lm.tiny_lm(kind)
    return model, fixture.experts(model, list("ab")), {t: [fixture.batch(i, 6)] for i, t in enumerate("ab")}


def quantised(kind: str, method: str = "rtn", **grid: Any) -> tuple[Any, epmq.Quantised]:
    model, experts, inputs = case(kind)
    return model, epmq.quantise(model, experts, inputs, method, epmq.QuantSpec(**grid))


def output(model: Any, kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    images = torch.randn(3, 3, 16, 16, generator=g)
    found: Any
    if kind == "open_clip":
        found = model(images)
    elif kind == "clip":
        found = model.get_image_features(pixel_values=images)
        found = getattr(found, "pooler_output", found)
    else:
        ids = torch.randint(3, 40, (3, 7), generator=g)
        found = model(input_ids=ids, **({"decoder_input_ids": ids} if kind == "t5" else {})).logits
    kept: torch.Tensor = found.detach()
    return kept


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_are_little_endian_bit_streams(bits: int) -> None:
    g = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (3, 21), generator=g).to(torch.uint8)
    packed = pack_rows(codes, bits)
    for row, words in zip(codes.tolist(), packed.tolist(), strict=True):
        stream = sum(code << (bits * i) for i, code in enumerate(row))
        assert sum((word % 2**32) << (32 * i) for i, word in enumerate(words)) == stream
    assert torch.equal(unpack_rows(packed, bits, 21), codes)
    with pytest.raises(ValueError, match="do not hold"):
        unpack_rows(packed, bits, 200)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_read_as_it_was_written(kind: str, form: Any, tmp_path: Path) -> None:
    grid: Any = {"bits": 3, "group_size": 8, "symmetric": kind == "llama"}
    model, report = quantised(kind, **grid)
    epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights, format=form)
    again = case(kind)[0]
    assert not torch.equal(output(again, kind), output(model, kind))
    epmq.load_weights(again, tmp_path / "model")
    assert torch.equal(output(again, kind), output(model, kind))
    config = json.loads((tmp_path / "model" / "config.json").read_bytes())
    assert ("quantization_config" in config) == (form == "compressed-tensors")
    if form == "compressed-tensors":
        assert config["quantization_config"].get("dequantize", False) == (kind != "llama")


@pytest.mark.parametrize(
    ("kind", "left"), [("clip", "mlp.fc2"), ("t5", "EncDecAttention"), ("llama", "o_proj")]
)
def test_input_scales_are_folded_or_the_layer_is_dense(kind: str, left: str, tmp_path: Path) -> None:
    model, report = quantised(kind, "awq", bits=4)
    written = epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights)
    assert written.dense
    assert all(left in name for name in written.dense)
    again = case(kind)[0]
    epmq.load_weights(again, tmp_path / "model")
    torch.testing.assert_close(output(again, kind), output(model, kind), rtol=1e-4, atol=1e-4)


NEW_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "levels of nf4": ("gptq", {"grid": "nf4", "group_size": 8}),
    "levels of fp4": ("rtn", {"grid": "fp4", "group_size": 16, "scale_dtype": "e8m0"}),
    "levels of nvfp4": ("gptq", {"grid": "nvfp4"}),
    "place for a rotation": ("quip", {"bits": 3}),
    "place for exceptions": ("spqr", {"bits": 3, "group_size": 8}),
    "whole zero points": ("hqq", {"bits": 3, "group_size": 8}),
}


@pytest.mark.parametrize("form", NEW_FORMS)
def test_our_own_format_holds_every_form_bit_for_bit(form: str, tmp_path: Path) -> None:
    method, grid = NEW_FORMS[form]
    model, report = quantised("open_clip", method, **grid)
    written = epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights, format="epmq")
    assert not written.dense
    told = sum(weight.packed_bits for weight in report.weights.values())
    assert 8 * written.packed_bytes == written.method_bits
    assert 0 <= written.method_bits - told <= 2 * 2 * 32, "q, k and v of two blocks each have their own seed"
    again = case("open_clip")[0]
    epmq.load_weights(again, tmp_path / "model")
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    epmq.write_checkpoint(tmp_path / "dense", model=model, weights=report.weights, format="dense")
    plain = case("open_clip")[0]
    epmq.load_weights(plain, tmp_path / "dense")
    assert torch.equal(output(plain, "open_clip"), output(model, "open_clip"))


@pytest.mark.parametrize("form", NEW_FORMS)
def test_what_compressed_tensors_has_no_place_for_is_refused_or_stays_dense(
    form: str, tmp_path: Path
) -> None:
    method, grid = NEW_FORMS[form]
    model, report = quantised("open_clip", method, **grid)
    with pytest.raises(UserError, match=f"no layer can be packed as compressed-tensors: .*{form}"):
        epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights)
    assert not list(tmp_path.iterdir())
    model, experts, inputs = case("open_clip")
    mixed = mixing(baselines.get(method), epmq.QuantSpec(**grid))
    report = epmq.quantise(model, experts, inputs, mixed)
    written = epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights)
    assert written.dense
    assert written.packed_weights
    assert all(form in reason for reason in written.dense.values())
    again = case("open_clip")[0]
    epmq.load_weights(again, tmp_path / "model")
    assert torch.equal(output(again, "open_clip"), output(model, "open_clip"))


def mixing(method: Any, spec: epmq.QuantSpec) -> Any:
    """Layers of more than 16 columns in another form, the others plainly."""
    plain = baselines.get("rtn")

    def rounding(problem: Any, _: Any) -> Any:
        wide = problem.centre.shape[1] > 16
        return method(problem, spec) if wide else plain(problem, epmq.QuantSpec(4))

    return rounding


def test_dense_tensors_keep_the_dtype_of_the_source_where_nothing_is_lost(tmp_path: Path) -> None:
    model, experts, images = case("clip")
    source = tmp_path / "base"
    tiny_clip.write_transformers(model.half().float(), source)
    stored = {name: x.half() for name, x in load_file(source / "model.safetensors").items()}
    save_file(stored, source / "model.safetensors")
    report = epmq.quantise(model, experts, images, "rtn", epmq.QuantSpec(4))
    epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights, source=source)
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found["visual_projection.weight"].dtype == torch.float16
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()
    assert (tmp_path / "model" / "tokenizer.json").is_file()


def test_the_file_is_as_large_as_its_bits_tell(tmp_path: Path) -> None:
    wide: Any = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 1}
    model = tiny_lm.tiny_lm("llama", **wide)
    experts, inputs = tiny_lm.experts(model, list("ab")), {t: [tiny_lm.batch(0, 6)] for t in "ab"}
    report = epmq.quantise(model, experts, inputs, "rtn", epmq.QuantSpec(4))
    weights = sum(weight.codes.numel() for weight in report.weights.values())
    scales = sum(weight.scale.numel() for weight in report.weights.values())
    wider: dict[Any, int] = {"epmq": 0, "compressed-tensors": 2 * scales}  # whose scales are float32
    for form, more in wider.items():
        written = epmq.write_checkpoint(tmp_path / form, model=model, weights=report.weights, format=form)
        told = report.bits_per_weight * weights / 8 + written.dense_bytes + more
        assert abs(written.file_bytes / told - 1) < 0.02


def test_what_cannot_be_written_is_refused_in_a_line(tmp_path: Path) -> None:
    model, report = quantised("open_clip", bits=4)
    plain = copy.deepcopy(case("open_clip")[0])
    with pytest.raises(UserError, match="is not what the model holds"):
        epmq.write_checkpoint(tmp_path / "model", model=plain, weights=report.weights)
    with pytest.raises(UserError, match="nothing is quantised"):
        epmq.write_checkpoint(tmp_path / "model", model=model, weights={})
    other = {f"blocks.9.{name}": weight for name, weight in report.weights.items()}
    with pytest.raises(UserError, match="is no layer of the model"):
        epmq.write_checkpoint(tmp_path / "model", model=model, weights=other)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, report = quantised("open_clip", bits=4)

    def full(_: Any, file: Path, __: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left.*free some space"):
        epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from epmq.packed.new_folder import new_folder
with new_folder(Path(sys.argv[1])) as work:
    (work / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_leaves_no_half_written_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert all(path.name.endswith(".unfinished") for path in tmp_path.iterdir())
    model, report = quantised("open_clip", bits=4)
    epmq.write_checkpoint(tmp_path / "model", model=model, weights=report.weights)


def test_a_damaged_folder_is_told_in_a_line(tmp_path: Path) -> None:
    model, report = quantised("open_clip", bits=4)
    folder = tmp_path / "model"
    epmq.write_checkpoint(folder, model=model, weights=report.weights)
    with pytest.raises(UserError, match="is it"):
        epmq.load_weights(case("t5")[0], folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("pack-quantized", "marlin"))
    with pytest.raises(UserError, match="expected pack-quantized"):
        Checkpoint(folder)
    (folder / "config.json").write_text(config.replace('"num_bits": 4', '"num_bits": 8'))
    with pytest.raises(UserError, match="cannot be unpacked"):
        epmq.load_weights(model, folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        Checkpoint(folder)
    with pytest.raises(UserError, match="no such folder"):
        Checkpoint(tmp_path / "nowhere")
