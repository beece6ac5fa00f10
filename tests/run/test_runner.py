"""A run's records say what an independent evaluation says, and say it again on every run."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from baselines.controls import CONTROLS
from benchmarks.images import workbench as image_workbench
from benchmarks.images.decoded import Images
from benchmarks.images.models import BASE_FILE, EXPERT_FILE
from benchmarks.images.workbench import ImageWorkbench
from benchmarks.run.runner import normalised, run
from benchmarks.sources import data
from benchmarks.sources.fetch import digest
from benchmarks.suites.forms import ImageTask
from epmq.calibration import LATER, Calibration
from epmq.checkpoints.lazy import sha256
from epmq.layer import spec
from epmq.layer.spec import QuantSpec
from results.store.folder import RunFolder
from results.store.records import Record, TaskResult
from tests.fixtures.tiny_runs import few, request
from tests.fixtures.tiny_suite import TASKS, TEMPLATES, TEST, TinySuite

LINEAR_WEIGHTS = 2 * (48 * 16 + 16 * 16 + 64 * 16 + 16 * 64)


def by_name(folder: RunFolder) -> dict[str, Record]:
    return {record.method: record for record in folder.records()}


@pytest.fixture(scope="module")
def finished(tiny: TinySuite, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A whole comparison, not to be changed."""
    return run(tiny.suite, request(), tmp_path_factory.mktemp("run") / "out", {"suite": "tiny"})


def test_every_cell_that_was_asked_for_has_one_record(finished: RunFolder) -> None:
    assert finished.read().problems == []
    assert {r.key for r in finished.records()} == {cell.key for cell in finished.manifest.cells}
    methods = {"rtn", "epmq-rtn", "gptq", "epmq", "epmq-features"}
    assert {r.method: r.kind for r in finished.records()} == {
        **dict.fromkeys(CONTROLS, "control"),
        **dict.fromkeys(methods, "method"),
    }


def test_records_say_what_was_computed(finished: RunFolder) -> None:
    later = {*LATER, *spec.LATER}
    axes = {f.name for part in (Calibration, QuantSpec) for f in fields(part)} - later | {"samples"}
    uncalibrated = ("zero-shot", "experts", "merged", "merged-auto", "expert-linears", "distilled")
    for record in finished.records():
        quantised = record.bits is not None
        assert (record.suite, record.suite_version, record.seed) == ("local/tiny", 1, 0)
        assert {task: result.samples for task, result in record.tasks.items()} == dict.fromkeys(TASKS, TEST)
        assert record.seconds.keys() >= {"evaluate"}
        parted = record.method == "featcal"  # the last block's queries
        assert len(record.layers) == (0 if record.method in uncalibrated else 8 + parted)
        assert (record.rounding is not None) == quantised
        assert (record.packed_bytes is not None) == quantised
        if record.layers:
            assert axes - record.axes.keys() <= (
                {f.name for f in fields(QuantSpec)} if not quantised else set()
            )
            assert record.seconds["calibrate"] > 0
            assert all(layer.expert_deviation is not None for layer in record.layers)
        if quantised:
            stored = 4 * LINEAR_WEIGHTS + (16 + 4) * sum(layer.rows for layer in record.layers)
            assert record.packed_bytes == stored // 8
            assert record.bits_per_weight == stored / LINEAR_WEIGHTS


def test_normalised_accuracy_is_relative_to_the_experts(finished: RunFolder) -> None:
    records = by_name(finished)
    experts = {task: result.value for task, result in records["experts"].tasks.items()}
    for name in ("gptq", "merged", "epmq-features"):
        shares = [result.value / experts[task] for task, result in records[name].tasks.items()]
        assert records[name].normalised == pytest.approx(sum(shares) / len(shares), rel=1e-12)


class Independent:
    """The suite evaluated with open_clip alone: its model, its transforms, its forward passes."""

    def __init__(self, tiny: TinySuite) -> None:
        self.tiny = tiny
        name = f"local-dir:{tiny.folder / 'base'}"
        self.model: Any
        self.model, self.transform = open_clip.create_model_from_pretrained(name, return_transform=True)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        whole = load_file(tiny.folder / "base" / BASE_FILE)
        names = [n for n in whole if n.startswith("visual.") and n != "visual.proj"]
        self.base = {n.removeprefix("visual."): whole[n].float() for n in names}
        self.experts = {task: load_file(tiny.expert(task)) for task in TASKS}

    def head(self, task: str) -> Tensor:
        rows = []
        for name in TASKS[task]:
            prompts = self.tokenizer([template.replace("{c}", name) for template in TEMPLATES])
            rows.append(F.normalize(self.model.encode_text(prompts), dim=-1).mean(0))
        return F.normalize(torch.stack(rows), dim=-1)

    @torch.no_grad()
    def correct(self, task: str, state: dict[str, Tensor]) -> list[bool]:
        self.model.visual.load_state_dict({**self.model.visual.state_dict(), **state})
        (file,) = (self.tiny.folder / "data" / task / "data").glob("test-*.parquet")
        table = pq.read_table(file).to_pydict()
        images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["image"]]
        features = self.model.encode_image(torch.stack([self.transform(x) for x in images]), normalize=True)
        found = (features @ self.head(task).T).argmax(1).tolist()
        return [one == label for one, label in zip(found, table["label"], strict=True)]

    def merged(self) -> dict[str, Tensor]:
        """Task arithmetic at 0.3."""
        return {
            name: x + 0.3 * sum(expert[name].float() - x for expert in self.experts.values())
            for name, x in self.base.items()
        }


def test_accuracies_are_those_of_an_independent_evaluation(tiny: TinySuite, finished: RunFolder) -> None:
    other, records = Independent(tiny), by_name(finished)
    merged = other.merged()
    for task in TASKS:
        states = {"zero-shot": other.base, "merged": merged, "experts": other.experts[task]}
        for method, state in states.items():
            expected = other.correct(task, state)
            assert finished.samples(records[method].key).correct[task].tolist() == expected
            assert records[method].tasks[task].value == sum(expected) / TEST


def test_two_runs_give_the_same_records_but_for_time_and_memory(
    tiny: TinySuite, finished: RunFolder, tmp_path: Path
) -> None:
    again = run(tiny.suite, request(), tmp_path / "elsewhere", {"suite": "tiny"})
    assert [untimed(r) for r in again.records()] == [untimed(r) for r in finished.records()]
    for key in (record.key for record in again.records()):
        one, other = ((f.path / "samples" / f"{key}.npz").read_bytes() for f in (again, finished))
        assert one == other


def untimed(record: Record) -> Record:
    curves = {place: each.model_copy(update={"seconds": 0.0}) for place, each in record.refinements.items()}
    search = record.search
    if search is not None:
        trials = tuple(trial.model_copy(update={"seconds": 0.0}) for trial in search.trials)
        search = search.model_copy(update={"trials": trials})
    absent = {"seconds": {}, "peak_memory_bytes": 0, "record_sha256": None}
    return record.model_copy(update={**absent, "refinements": curves, "search": search})


@pytest.mark.keeps_rng
def test_a_run_leaves_global_state_alone(tiny: TinySuite, tmp_path: Path) -> None:
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    bars = datasets.is_progress_bar_enabled()
    run(tiny.suite, few(method=["gptq"], controls=["experts", "epmq-fp"]), tmp_path / "out", {})
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    assert bars == datasets.is_progress_bar_enabled()


def test_a_rerun_computes_only_what_is_missing(
    tiny: TinySuite, finished: RunFolder, tmp_path: Path, computed: list[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.path, out)
    run(tiny.suite, request(), out, {})
    assert computed == []
    lines = (out / "records.jsonl").read_text().splitlines(keepends=True)
    gone = [line for line in lines if json.loads(line)["method"] in ("merged", "epmq")]
    (out / "records.jsonl").write_text("".join(line for line in lines if line not in gone))
    folder = run(tiny.suite, request(), out, {})
    assert computed == ["merged", "epmq"]
    assert {untimed(r).key: untimed(r) for r in folder.records()} == {
        untimed(r).key: untimed(r) for r in finished.records()
    }


def test_a_folder_takes_further_cells(tiny: TinySuite, tmp_path: Path, computed: list[str]) -> None:
    run(tiny.suite, few(), tmp_path, {})
    folder = run(tiny.suite, few(bits=[3, 4], seeds=[0]), tmp_path, {})
    assert computed == ["zero-shot", "rtn", "rtn"]
    assert [r.bits for r in folder.records()] == [None, 4, 3]
    assert len(folder.manifest.cells) == 3


def test_another_seed_draws_other_samples(tiny: TinySuite, tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = run(tiny.suite, few(method=["gptq"], controls=[], seeds=[seed]), tmp_path, {})
    one, other = folder.records()
    assert one.key != other.key
    assert [layer.objective for layer in one.layers] != [layer.objective for layer in other.layers]
    task = tiny.suite.tasks[0]
    ids = data.sample_ids(task, 24, 8, 0)
    assert len(set(ids)) == 8
    assert ids == data.sample_ids(task, 24, 24, 0)[:8] != data.sample_ids(task, 24, 8, 1)


def test_calibration_reads_no_label_and_no_test_sample(
    tiny: TinySuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    images = ImageWorkbench.images

    def spy(self: ImageWorkbench, task: ImageTask, split: str, ids: list[int] | None = None) -> Images:
        found = images(self, task, split, ids)
        found.labels[:] = -1  # whoever uses them gives another result
        seen.append((split, len(found)))
        return found

    expected = ImageWorkbench(tiny.suite).calibration_inputs(8, 0)
    monkeypatch.setattr(ImageWorkbench, "images", spy)
    inputs = ImageWorkbench(tiny.suite).calibration_inputs(8, 0)
    assert seen == [("train", 8)] * len(TASKS)
    assert all(torch.equal(*map(torch.as_tensor, (inputs[t], expected[t]))) for t in TASKS)


def test_manifest_names_every_revision(tiny: TinySuite, finished: RunFolder) -> None:
    manifest = finished.manifest
    experts = {t: digest({EXPERT_FILE: tiny.suite.checkpoints[str(tiny.expert(t))]}) for t in TASKS}
    assert manifest.revisions["experts"] == {task: f"local:{found}" for task, found in experts.items()}
    files = [file for file in (tiny.folder / "base").iterdir() if file.is_file()]
    assert manifest.revisions["base"] == f"local:{digest({f.name: sha256(f) for f in files})}"
    assert isinstance(manifest.revisions["datasets"], dict)
    assert {len(str(x)) for x in manifest.revisions["datasets"].values()} == {64}
    assert manifest.calibration == {
        task.task: data.digest(data.sample_ids(task, 24, 8, 0)) for task in tiny.suite.tasks
    }
    assert manifest.environment["device"] == "cpu"
    packages = manifest.environment["packages"]
    assert isinstance(packages, dict)
    assert packages["torch"] == version("torch")


def test_no_expert_right_on_a_task_leaves_normalised_out(
    tiny: TinySuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_workbench, "predictions", lambda *_: np.full((1, TEST), -1, dtype=np.int32))
    folder = run(tiny.suite, few(controls=["experts"]), tmp_path, {})
    assert {r.method: r.normalised for r in folder.records()} == {"experts": None, "rtn": None}


def test_warnings_of_both_steps_land_in_the_record(tiny: TinySuite, tmp_path: Path) -> None:
    singular = few(method=[], controls=["two-step"], samples=[1], calibration={"anchor": 0.0})
    (record,) = run(tiny.suite, singular, tmp_path, {}).records()
    own = {warning for layer in record.layers for warning in layer.warnings}
    assert not any("ridge" in warning for warning in own), "the damping of GPTQ needs no help"
    assert any("not positive definite: ridge" in warning for warning in record.warnings)


def test_featcal_reads_the_base_and_is_rounded_after(tiny: TinySuite, tmp_path: Path) -> None:
    asked = few(method=[], controls=["featcal", "featcal-gptq", "merged"])
    found = {record.method: record for record in run(tiny.suite, asked, tmp_path, {}).records()}
    rounded, plain = found["featcal-gptq"], found["featcal"]
    assert (plain.bits, plain.axes["anchor_point"], plain.axes["patch_weight"]) == (None, 2.2, 0.01)
    fused = [layer.name for layer in plain.layers if "in_proj" in layer.name]
    assert fused == [f"blocks.{i}" for i in ("0.attn.in_proj", "1.attn.in_proj[:16]", "1.attn.in_proj[16:]")]
    assert [layer.name for layer in rounded.layers][4:] == [
        f"blocks.1.{name}" for name in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert rounded.axes["then.target"] == "merged"


def test_only_matching_layers_are_quantised_in_every_step(tiny: TinySuite, tmp_path: Path) -> None:
    controls = ["regmean-gptq", "two-step", "epmq-fp"]
    asked = few(controls=controls, calibration={"layers": "*.1.mlp.*"})
    for record in run(tiny.suite, asked, tmp_path, {}).records():
        assert [layer.name for layer in record.layers] == ["blocks.1.mlp.c_fc", "blocks.1.mlp.c_proj"]


def test_normalised_accuracy_does_not_depend_on_the_order_of_tasks() -> None:
    """A record that was just made has the tasks in the order of the suite, one that was read, sorted."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        values = {f"task {i}": float(x) for i, x in enumerate(draw.random(8))}
        experts = {
            task: TaskResult(value=float(x), samples=9)
            for task, x in zip(values, draw.random(8), strict=True)
        }
        backwards = dict(reversed(experts.items()))
        assert normalised(values, experts) == normalised(values, backwards)
