"""Text suites run like any other: cells, records, merges, refusals; generation is the model's own."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, T5ForConditionalGeneration

import baselines
from benchmarks.run.cells import Request
from benchmarks.run.runner import run
from benchmarks.run.solvers import solver
from benchmarks.suites import load as suites
from benchmarks.text.workbench import TextWorkbench
from benchmarks.workbench.base import Setting
from benchmarks.workbench.machine import Machine
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from epmq.merging import merge
from epmq.walk import walk
from results.analysis.analysis import Analysis
from results.judge.verify import verify
from results.store.folder import RunFolder
from results.store.samples import SCORES
from tests.fixtures.tiny_suite import TinySuite
from tests.fixtures.tiny_text import TASKS, TEST, TinyText


def few(**changes: Any) -> Request:
    asked: dict[str, Any] = {
        "merge": ["task-arithmetic"],
        "method": ["gptq"],
        "target": ["merged"],
        "bits": [3],
        "controls": [],
        "samples": [6],
    }
    return Request(**{**asked, **changes})


@pytest.fixture(scope="module")
def finished(tiny_text: TinyText, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    controls = ["zero-shot", "experts", "merged"]
    asked = few(method=["rtn", "gptq", "epmq"], controls=controls)
    return run(tiny_text.suite, asked, tmp_path_factory.mktemp("text"), {})


@pytest.mark.keeps_rng
def test_every_cell_is_recorded_with_its_metric_and_samples(finished: RunFolder) -> None:
    assert [r.method for r in finished.records()] == ["experts", "zero-shot", "merged", "rtn", "gptq", "epmq"]
    for record in finished.records():
        metrics = {task: result.metric for task, result in record.tasks.items()}
        assert metrics == {"warm": "accuracy", "kind": "accuracy", "score": "spearman"}
        assert {result.samples for result in record.tasks.values()} == {TEST}
        stored = finished.samples(record.key).predictions
        assert stored["kind@prediction"].min() >= -1
        assert set(finished.samples(record.key).correct) == {"warm", "kind"}
        assert stored["score@reference"].shape == (TEST,)
    assert not verify(Analysis(finished)).failed


def test_classes_have_both_scores_and_numbers_have_one(finished: RunFolder) -> None:
    for record in finished.records():
        samples = finished.samples(record.key)
        ranked, stored = samples.ranked, samples.predictions
        assert set(ranked) == {"warm", "kind"}
        for task, right in ranked.items():
            found, reference = record.tasks[task], stored[f"{task}@reference"]
            assert found.ranked == right.mean()
            assert found.ranked_norm == (stored[f"{task}@ranked_norm"] == reference).mean()
            assert found.invalid == (stored[f"{task}@prediction"] == -1).mean()
            assert found.majority == np.bincount(reference).max() / TEST
            recall = [(stored[f"{task}@prediction"][reference == c] == c).mean() for c in set(reference)]
            assert found.balanced == pytest.approx(np.mean(recall))
        assert {getattr(record.tasks["score"], name) for name in SCORES} == {None}
        assert record.average_ranked == np.mean([record.tasks[task].ranked for task in ranked])
    assert any(record.tasks["kind"].ranked != record.tasks["kind"].value for record in finished.records())


def test_calibrated_cells_say_what_the_decoder_read(finished: RunFolder) -> None:
    said = {r.method: r.axes.get("decoder") for r in finished.records()}
    assert said == {
        "experts": None,
        "zero-shot": None,
        "merged": None,
        "rtn": "experts",
        "gptq": "experts",
        "epmq": "experts",
    }
    asked = {(cell.model_extra or {}).get("decoder") for cell in finished.manifest.cells if cell.bits}
    assert asked == {"experts"}


def test_featcal_on_text_solves_norms_and_counts_all_tokens_alike(
    tiny_text: TinyText, tmp_path: Path
) -> None:
    asked = few(method=[], controls=["featcal", "featcal-gptq", "merged"])
    found = {record.method: record for record in run(tiny_text.suite, asked, tmp_path, {}).records()}
    for name in ("featcal", "featcal-gptq"):
        axes = found[name].axes
        assert (axes["patch_weight"], axes["norms"], axes["anchor_point"]) == (1.0, "closed-form", 2.2)
        assert "patch_scope" not in axes


def test_what_no_tower_of_texts_has_is_refused_before_any_cell(tiny_text: TinyText, tmp_path: Path) -> None:
    asked = few(controls=["merged"], calibration={"patch_weight": 0.5})
    with pytest.raises(UserError, match=r"patch_weight 0\.5 needs a head that reads a class token alone"):
        run(tiny_text.suite, asked, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_the_same_request_again_computes_nothing(
    finished: RunFolder, tiny_text: TinyText, tmp_path: Path
) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(finished.path, copied)
    before = (copied / "records.jsonl").read_bytes()
    run(tiny_text.suite, few(), copied, {})
    assert (copied / "records.jsonl").read_bytes() == before


def test_a_suite_of_images_has_no_decoder(tiny: TinySuite, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--decoder 'start' changes nothing in local/tiny"):
        run(tiny.suite, few(decoder="start"), tmp_path, {})


def test_an_unknown_decoder_is_refused_before_any_work(tiny_text: TinyText, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="decoder 'foo' is unknown; known: experts, start, targets"):
        run(tiny_text.suite, few(decoder="foo"), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def quantised(workbench: TextWorkbench) -> Any:
    """The workbench's model, merged and quantised in memory."""
    tower = workbench.merged("task-arithmetic", {"scale": 0.3})
    inputs = workbench.calibration_inputs(6, 0, "targets")
    for _ in walk(
        tower, workbench.models.experts, inputs, Calibration(), solver(baselines.get("gptq"), QuantSpec(3))
    ):
        pass
    return tower


def generated(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """Greedy generation by transformers, padded to the model's limit."""
    x = tokenizer(prompts, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(x.input_ids, attention_mask=x.attention_mask, max_length=5)
    said: list[str] = tokenizer.batch_decode(out, skip_special_tokens=True)
    return said


def test_generation_is_the_same_by_lm_eval_by_transformers_and_after_saving(
    tiny_text: TinyText, tmp_path: Path
) -> None:
    workbench = TextWorkbench(tiny_text.suite)
    tower = quantised(workbench)
    tower.model.save_pretrained(tmp_path / "saved")
    workbench.models.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert not torch.equal(loaded.lm_head.weight, loaded.shared.weight)
    for task in workbench.suite.tasks:
        rows = workbench.rows(task, "test")
        prompts = [workbench._tasks[task.task].prompt(row) for row in rows]
        direct = generated(tower.model, workbench.models.tokenizer, prompts)
        assert direct == generated(loaded, AutoTokenizer.from_pretrained(tmp_path / "saved"), prompts)
        (found,) = workbench.answers([tower], task)
        names = TASKS[task.task]["answers"]
        if names is None:
            expected = [float(x) if is_number(x) else 0.0 for x in direct]
        else:
            expected = [names.index(x) if x in names else -1 for x in direct]
        assert found.predicted.tolist() == expected
        assert found.actual.tolist() == [round(x, 1) if names is None else x for x in rows["label"]]


def is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def test_ties_counts_the_embedding_three_times(tiny_text: TinyText) -> None:
    workbench = TextWorkbench(tiny_text.suite)
    tower = workbench.merged("ties", {"scale": 0.3, "keep": 0.2})
    found = {key: p.detach().clone() for key, p in tower.merged_parameters().items()}
    experts = list(workbench.models.experts.values())
    expected = merge("ties", workbench.models.base, experts, multiplicity={"shared.weight": 3})
    plain = merge("ties", workbench.models.base, experts)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert any(not torch.equal(found[key], plain[key]) for key in found)


def test_copies_of_the_embedding_in_older_files_change_nothing(tiny_text: TinyText, tmp_path: Path) -> None:
    def older(described: dict[str, Any]) -> None:
        for task in described["tasks"]:
            folder = tmp_path / task["task"]
            folder.mkdir()
            tensors = load_file(Path(task["expert"]) / "model.safetensors")
            for stack in ("encoder", "decoder"):
                tensors[f"{stack}.embed_tokens.weight"] = tensors["shared.weight"].clone()
            save_file(tensors, folder / "model.safetensors")
            task["expert"] = str(folder)

    workbench = TextWorkbench(tiny_text.suite)
    other = TextWorkbench(suites.load(str(tiny_text.variant(tmp_path / "older.json", older))))
    for task in TASKS:
        ours, theirs = workbench.models.experts[task], other.models.experts[task]
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_lora_expert_is_merged_into_the_base_first(tiny_text: TinyText, tmp_path: Path) -> None:
    adapted = "encoder.block.0.layer.0.SelfAttention.q"
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 16, generator=g), torch.randn(16, 2, generator=g)
    folder = tmp_path / "lora"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    prefix = f"base_model.model.{adapted}"
    save_file(
        {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, folder / "adapter_model.safetensors"
    )
    path = tiny_text.variant(tmp_path / "lora.json", lambda d: d["tasks"][0].update(expert=str(folder)))
    workbench = TextWorkbench(suites.load(str(path)))
    base, expert = workbench.models.base, workbench.models.experts["warm"]
    expected = base[f"{adapted}.weight"].float() + 2 * b @ a
    torch.testing.assert_close(expert[f"{adapted}.weight"].float(), expected)
    others = [k for k in base if k != f"{adapted}.weight"]
    assert all(torch.equal(expert[k].float(), base[k].float()) for k in others)


def test_bfloat16_is_an_evaluation_dtype_and_float16_is_refused(tiny_text: TinyText, tmp_path: Path) -> None:
    made = run(
        tiny_text.suite,
        few(controls=["merged"], method=[]),
        tmp_path / "a",
        {},
        Setting(Machine(dtype="bfloat16")),
    )
    assert [r.dtype for r in made.records()] == ["bfloat16"]
    with pytest.raises(UserError, match="float16 overflows in T5; give float32 or bfloat16"):
        run(tiny_text.suite, few(), tmp_path / "b", {}, Setting(Machine(dtype="float16")))


def test_cells_evaluated_together_are_those_evaluated_alone(tiny_text: TinyText, tmp_path: Path) -> None:
    asked = few(method=["rtn", "gptq"])
    alone = run(tiny_text.suite, asked, tmp_path / "alone", {})
    both = run(tiny_text.suite, asked, tmp_path / "both", {}, Setting(together=2))
    assert [r.tasks for r in alone.records()] == [r.tasks for r in both.records()]


def test_without_lm_eval_nothing_starts(
    tiny_text: TinyText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    with pytest.raises(UserError, match=r"no package lm_eval\); pip install 'epmq\[lm\]'"):
        run(tiny_text.suite, few(), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


Edit = Callable[[dict[str, Any], Path], object]


def new_base(described: dict[str, Any], folder: Path) -> Path:
    """A copy of the base, which the suite then names."""
    shutil.copytree(described["base"], folder / "base")
    described["base"] = str(folder / "base")
    return folder / "base"


def decoder_only(described: dict[str, Any], folder: Path) -> None:
    GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=16).save_pretrained(new_base(described, folder))


def long_tokenizer(described: dict[str, Any], folder: Path) -> None:
    base = new_base(described, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<more{i}>" for i in range(9)])
    tokenizer.save_pretrained(base)


def other_padding(described: dict[str, Any], folder: Path) -> None:
    file = new_base(described, folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token_id": 2}))


def unlabelled(described: dict[str, Any], folder: Path) -> None:
    """The test split of GLUE's kind: every label is -1."""
    data = folder / "data"
    shutil.copytree(described["tasks"][0]["dataset"]["path"], data)
    file = data / "data" / "test-00000-of-00001.parquet"
    rows = load_dataset("parquet", data_files=str(file), split="train")
    Dataset.from_dict({"sentence": rows["sentence"][:], "label": [-1] * len(rows)}).to_parquet(file)
    described["tasks"][0]["dataset"]["path"] = str(data)


def other_field(described: dict[str, Any], folder: Path) -> None:
    file = folder / "warm.yaml"
    file.write_text(Path(described["tasks"][0]["prompt"]).read_text().replace("{{sentence}}", "{{question}}"))
    described["tasks"][0]["prompt"] = str(file)


def base_as_expert(described: dict[str, Any], _: Path) -> None:
    described["tasks"][1]["expert"] = described["base"]


def damaged_expert(described: dict[str, Any], folder: Path) -> None:
    tensors = load_file(Path(described["tasks"][1]["expert"]) / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    described["tasks"][1]["expert"] = str(folder)


def shallow_expert(described: dict[str, Any], folder: Path) -> None:
    tensors = load_file(Path(described["tasks"][1]["expert"]) / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "decoder.block.2" not in k}, folder / "model.safetensors")
    described["tasks"][1]["expert"] = str(folder)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            decoder_only,
            "describes a decoder-only model (gpt2), the suite local/tiny-text needs encoder-decoder",
        ),
        (
            long_tokenizer,
            "the tokenizer has 94 tokens, the model's embedding 85 rows; give the model its own",
        ),
        (other_padding, "the tokenizer's pad_token_id is 0, config.json says 2; give the model its own"),
        (unlabelled, "label -1 is none of the task tiny_warm, 0..1"),
        (other_field, "has no column 'question', which the task tiny_warm needs, only sentence, label"),
        (base_as_expert, "every tensor equals the base's; give an expert fine-tuned from this base"),
        (damaged_expert, "tensor 'lm_head.weight' holds NaN or Inf"),
        (shallow_expert, "is missing (14 in all); give an expert fine-tuned from this base"),
    ],
    ids=lambda x: x.__name__ if callable(x) else "",
)
def test_bad_input_is_refused_before_any_work(
    tiny_text: TinyText, tmp_path: Path, edit: Edit, said: str
) -> None:
    path = tiny_text.variant(tmp_path / "bad.json", lambda d: edit(d, tmp_path))
    with pytest.raises(UserError) as caught:
        run(suites.load(str(path)), few(), tmp_path / "out", {})
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()
