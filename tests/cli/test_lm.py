"""``epmq run lm``: any causal model and its experts, whole or LoRA, from merge to lm-eval's answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.cli.main import main
from benchmarks.sources.lock import lock_path
from benchmarks.suites import any_lm
from benchmarks.suites import load as suites
from benchmarks.suites.forms import TextTask
from benchmarks.text.workbench import TextWorkbench
from epmq.errors import UserError
from results.store.folder import RunFolder
from results.store.records import Record
from tests.fixtures.complaints import complaint, refused
from tests.fixtures.tiny_any_lm import (
    FILE,
    PROMPTS,
    RANK,
    TEST,
    TinyLmSuite,
    pairs,
    rows,
    words,
    write_lm_suite,
    write_lora,
)
from tests.hub.content import build_text, shared
from tests.hub.server import Hub
from tests.hub.text_models import LLAMA

ROOT = Path(__file__).parents[2]
ASKED = ["--method", "gptq", "epmq", "--controls", "zero-shot", "experts", "merged", "--samples", "24"]
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyLmSuite:
    return write_lm_suite(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def out(made: TinyLmSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run, not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "out"
    assert main(["run", *made.arguments, *ASKED, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def records(out: Path) -> dict[str, Record]:
    return {record.method: record for record in RunFolder.open(out).records()}


def test_a_run_holds_every_cell_with_its_layers_and_bits(out: Path, records: dict[str, Record]) -> None:
    assert list(records) == ["experts", "zero-shot", "merged", "gptq", "epmq"]
    for record in records.values():
        assert (record.suite, record.suite_version, record.pinned) == ("lm", 1, True)
        assert {task: x.samples for task, x in record.tasks.items()} == dict.fromkeys(PROMPTS, TEST)
    for method in ("gptq", "epmq"):
        record = records[method]
        assert len(record.layers) == 2 * 4
        assert record.bits_per_weight is not None
        assert 4 < record.bits_per_weight < 5
        assert {"bits": 4, "samples": 24, "decoder": "experts"}.items() <= record.axes.items()
    assert RunFolder.open(out).manifest.suite == "lm"
    assert main(["verify", str(out)]) == 0
    assert main(["table", str(out)]) == 0


def test_experts_know_their_tasks_better_than_the_base(records: dict[str, Record]) -> None:
    experts, base = records["experts"].tasks, records["zero-shot"].tasks
    assert all(experts[task].value > base[task].value + 0.2 for task in PROMPTS)
    found = [records[method].average for method in ("merged", "gptq", "epmq")]
    assert any(0 < value < 1 for value in found)


def said(model: Any, task: str) -> list[int]:
    """Classes of a model's own greedy answers, one prompt at a time; -1 for anything else."""
    tokenizer, choices = words(), PROMPTS[task][1]
    found = []
    for prompt, _ in pairs(task, rows(task, TEST, 1)):
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        found.append(choices.index(text) if text in choices else -1)
    return found


def loaded(made: TinyLmSuite, weights: dict[str, Tensor]) -> Any:
    model = LlamaForCausalLM.from_pretrained(made.base)
    model.load_state_dict(weights)
    return model.eval()


def weights_of(made: TinyLmSuite) -> dict[str, dict[str, Tensor]]:
    """Base, experts and merge, by hand: 2 B A of the adapter, 0.3 times the sum of the task vectors."""
    base, full = (load_file(folder / "model.safetensors") for folder in (made.base, made.experts[0]))
    adapter, lora = load_file(made.experts[1] / "adapter_model.safetensors"), dict(base)
    for name in base:
        where = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{where}A.weight" in adapter:
            lora[name] = base[name] + 2 * adapter[f"{where}B.weight"] @ adapter[f"{where}A.weight"]
    merged = {name: x + 0.3 * (full[name] - x + lora[name] - x) for name, x in base.items()}
    assert sum(not torch.equal(lora[name], base[name]) for name in base) == 2 * 7
    return {"base": base, "colour": full, "thing": lora, "merged": merged}


def test_answers_are_those_of_transformers_own_generation(
    made: TinyLmSuite, out: Path, records: dict[str, Record]
) -> None:
    folder, weights = RunFolder.open(out), weights_of(made)
    models = {name: loaded(made, state) for name, state in weights.items()}
    for method, of in (("zero-shot", "base"), ("merged", "merged"), ("experts", "")):
        found = folder.samples(records[method].key).predictions
        for task in PROMPTS:
            expected = said(models[of or task], task)
            assert found[f"{task}@prediction"].tolist() == expected
            right = np.mean(np.array(expected) == np.array(rows(task, TEST, 1)["label"]))
            assert records[method].tasks[task].value == pytest.approx(float(right))


@torch.no_grad()
def likeliest(model: Any, task: str) -> list[int]:
    """The answer whose tokens have the largest likelihood after the prompt, one at a time."""
    tokenizer, choices = words(), PROMPTS[task][1]
    found = []
    for prompt, _ in pairs(task, rows(task, TEST, 1)):
        ids = tokenizer(prompt).input_ids
        scores = []
        for choice in choices:
            wanted = tokenizer(choice).input_ids
            logits = model(torch.tensor([ids + wanted])).logits[0, len(ids) - 1 : -1]
            scores.append(sum(float(row.log_softmax(0)[w]) for row, w in zip(logits, wanted, strict=True)))
        found.append(int(np.argmax(scores)))
    return found


def test_ranked_answers_are_those_of_transformers_own_likelihoods(
    made: TinyLmSuite, out: Path, records: dict[str, Record]
) -> None:
    folder, model = RunFolder.open(out), loaded(made, weights_of(made)["merged"])
    record, found = records["merged"], folder.samples(records["merged"].key).predictions
    for task in PROMPTS:
        expected = likeliest(model, task)
        assert found[f"{task}@ranked"].tolist() == expected
        right = np.mean(np.array(expected) == np.array(rows(task, TEST, 1)["label"]))
        assert record.tasks[task].ranked == pytest.approx(float(right))
        assert record.tasks[task].invalid == np.mean(found[f"{task}@prediction"] == -1)


@pytest.mark.parametrize("decoder", ["experts", "start"])
def test_calibration_reads_prompts_with_what_the_experts_answer(decoder: str, made: TinyLmSuite) -> None:
    """All but the last token that the expert generates, as it reads it; with ``start`` the prompt alone."""
    suite = any_lm.suite(str(made.base), list(map(str, made.experts)), list(map(str, made.tasks)), 99)
    found = TextWorkbench(suite).calibration_inputs(8, 0, decoder)
    weights, workbench = weights_of(made), TextWorkbench(suite)
    for task in suite.tasks:
        model, wanted = loaded(made, weights[task.task]), set()
        for i in workbench.sample_ids(task, 8, 0):
            text = workbench._tasks[task.task].prompt(workbench.rows(task, "train")[i])
            prompt = words()(text, return_tensors="pt").input_ids
            said = model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, :-1]
            wanted.add(tuple((prompt[0] if decoder == "start" else said).tolist()))
        read = [
            ids[mask.bool()]
            for b in found[task.task]
            for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)
        ]
        assert {tuple(ids.tolist()) for ids in read} == wanted


def test_a_second_run_finds_its_cells_from_anywhere(
    made: TinyLmSuite, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    """The way in which paths are given changes no cell."""
    before = (out / "records.jsonl").read_bytes()
    monkeypatch.chdir(made.base.parent)
    names = ["--expert", "full", "--expert", "lora", "--tasks", "colour.yaml", "--tasks", "thing.yaml"]
    assert main(["run", "lm", "--base", "base", *names, *ASKED, "--out", str(out)]) == 0
    assert "5 cells in" in capsys.readouterr().err
    assert (out / "records.jsonl").read_bytes() == before


def test_a_plan_downloads_and_computes_nothing(made: TinyLmSuite, capsys: Output) -> None:
    assert main(["run", *made.arguments, *ASKED, "--plan"]) == 0
    said = capsys.readouterr().out
    assert "lm, version 1: 5 cells" in said
    assert "Downloads: none" in said


def test_another_expert_may_not_add_to_the_results(
    made: TinyLmSuite, out: Path, tmp_path: Path, capsys: Output
) -> None:
    adapter = load_file(made.experts[1] / "adapter_model.safetensors")
    write_lora({name: 2 * x for name, x in adapter.items()}, tmp_path / "other", made.base)
    given = replaced(made, lora=str(tmp_path / "other"))
    assert "another revision of the experts" in complaint(capsys, "run", *given, *ASKED, "--out", str(out))


def replaced(made: TinyLmSuite, **others: str) -> list[str]:
    """The arguments with others in the place of folders and files of these names."""
    return [others.get(Path(word).stem, word) for word in made.arguments]


def test_experts_and_tasks_must_pair_up(made: TinyLmSuite, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "out"
    text = complaint(capsys, "run", *made.arguments[:-1], "--out", out)
    assert text.startswith(
        "2 experts and 1 tasks are given; give every expert the task that it was fine-tuned"
    )
    base, one, *_ = map(str, (made.base, made.tasks[0]))
    text = complaint(capsys, "run", "lm", "--base", base, "--tasks", one, "--out", out)
    assert text == "'epmq run lm' needs --expert; see 'epmq run --help'"
    twice = replaced(made, thing=one)
    assert "task 'colour' is given twice" in complaint(capsys, "run", *twice, "--out", out)
    assert not out.exists()


def test_arguments_of_lm_belong_to_lm_alone(tmp_path: Path, capsys: Output) -> None:
    text = refused(capsys, Path("clip-vit-b32-8"), tmp_path / "out", "--base", "a/b")
    assert text == "--base belongs to 'epmq run lm'; leave it out of clip-vit-b32-8"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("base", "model 'nowhere' is neither a folder nor a hub id"),
        ("full", "model 'nowhere' is neither a folder nor a hub id"),
        ("colour", "nowhere: cannot read the task file: No such file"),
    ],
)
def test_what_is_nowhere_is_refused(
    place: str, text: str, made: TinyLmSuite, tmp_path: Path, capsys: Output
) -> None:
    given = replaced(made, **{place: "nowhere"})
    assert text in complaint(capsys, "run", *given, "--out", tmp_path / "out")


def test_a_model_of_another_kind_is_refused_by_name(
    made: TinyLmSuite, tmp_path: Path, capsys: Output
) -> None:
    other = tmp_path / "t5"
    other.mkdir()
    for file in made.base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_bytes())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    text = complaint(capsys, "run", *replaced(made, base=str(other)), "--out", tmp_path / "out")
    assert "describes an encoder-decoder (t5), the suite lm needs causal" in text


def test_an_expert_of_another_base_is_refused(made: TinyLmSuite, tmp_path: Path, capsys: Output) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    write_lora(
        {f"{name}A.weight": torch.ones(RANK, 48), f"{name}B.weight": torch.ones(48, RANK)},
        tmp_path / "x",
        made.base,
    )
    text = complaint(capsys, "run", *replaced(made, lora=str(tmp_path / "x")), "--out", tmp_path / "out")
    assert "is (48, 48), the base's is (32, 32); give its own base" in text
    text = complaint(capsys, "run", *replaced(made, full=str(made.base)), "--out", tmp_path / "out")
    assert "every tensor equals the base's" in text


def test_the_suite_is_what_was_given(made: TinyLmSuite) -> None:
    experts, tasks = list(map(str, made.experts)), list(map(str, made.tasks))
    found = any_lm.suite(str(made.base), experts, tasks, 99)
    assert (found.name, found.kind, found.architecture, found.max_length) == ("lm", "text", "causal", 99)
    assert [(t.task, t.expert, t.prompt) for t in found.tasks] == list(
        zip(PROMPTS, experts, tasks, strict=True)
    )
    data = found.tasks[1].dataset
    assert data.path == str(made.tasks[1].parent / "thing-data")
    assert (data.train_split, data.eval_split, data.columns) == ("train", "validation", ["sentence", "other"])
    other = any_lm.suite(str(made.base), experts[::-1], tasks[::-1], 99)
    assert lock_path(found) != lock_path(other)


def test_a_bundled_task_has_the_data_of_its_suite(made: TinyLmSuite) -> None:
    found = any_lm.suite("o/b", ["o/e"], ["glue8/rte.yaml"])
    bundled = {task.task: task for task in suites.load("flan-t5-base-glue8").tasks}
    assert isinstance(bundled["rte"], TextTask)
    assert found.tasks[0].dataset == bundled["rte"].dataset
    assert found.tasks[0].prompt == "glue8/rte.yaml"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("dataset_path: data\n", ""), "field 'dataset_path' is None, expected a name"),
        (("dataset_path: data", "dataset_path: elsewhere"), "dataset_path 'elsewhere' is neither a folder"),
        (("training_split: train\n", ""), "field 'training_split' is None, expected a name"),
        (("validation_split: validation\n", ""), "field 'validation_split' is None, expected a name"),
        (("validation_split: validation", "test_split: 3"), "field 'test_split' is 3: expected a text"),
        (("validation_split: validation", "test_split: train"), "'train' is both training and test split"),
        (("task: colour", "task: a/b"), "task 'a/b' has other signs than letters"),
        (("doc_to_target: label\n", ""), "field 'doc_to_target' is missing"),
    ],
    ids=str,
)
def test_a_task_file_that_does_not_say_enough_is_refused(
    change: tuple[str, str], text: str, tmp_path: Path
) -> None:
    prompt, choices = PROMPTS["colour"]
    content = FILE.format(task="colour", data="data", prompt=prompt, choices=json.dumps(choices))
    (tmp_path / "data").mkdir()
    file = tmp_path / "colour.yaml"
    file.write_text(content)
    any_lm.suite("o/b", ["o/e"], [str(file)])
    assert content.count(change[0]) == 1
    file.write_text(content.replace(*change))
    with pytest.raises(UserError, match=str(file)) as caught:
        any_lm.suite("o/b", ["o/e"], [str(file)])
    assert text in str(caught.value)


def test_a_test_split_comes_before_a_validation_split(tmp_path: Path) -> None:
    file = write_hub_task(tmp_path, "rte", "premise: {{sentence1}} and {{sentence2}}", "test_split: test")
    found = any_lm.suite("o/b", ["o/e"], [str(file)]).tasks[0].dataset
    assert (found.path, found.config, found.eval_split) == ("nyu-mll/glue", "rte", "test")


def write_hub_task(folder: Path, name: str, prompt: str, more: str = "") -> Path:
    """A task file whose data are GLUE's on the hub."""
    content = FILE.format(task=name, data="nyu-mll/glue", prompt=prompt, choices='["yes", "no"]')
    file = folder / f"{name}.yaml"
    file.write_text(f"{content}dataset_name: {name}\n{more}\n")
    return file


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub(build_text(shared(tmp_path_factory))) as hub:
        yield hub


def test_models_and_data_of_the_hub_are_pinned_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    """On the replica: a tiny Llama, an expert in bfloat16 and a LoRA expert; one process after another."""
    prompts = {"rte": "Does {{sentence1}} mean {{sentence2}} ?", "sst2": "Is {{sentence}} good ?"}
    files = [str(write_hub_task(tmp_path, name, prompt)) for name, prompt in prompts.items()]
    given = ["lm", "--base", LLAMA, "--expert", f"{LLAMA}-a", f"{LLAMA}-b", "--tasks", *files]
    options = ["--method", "gptq", "--controls", "experts", "--samples", "8", "--out", str(tmp_path / "out")]
    online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
    own = {**hub.env(tmp_path / "home"), **online, "EPMQ_CACHE": str(tmp_path / "epmq")}
    command = [sys.executable, "-m", "benchmarks.cli.main", "run", *given, *options]
    done = subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (lock,) = (tmp_path / "epmq" / "locks").iterdir()
    assert set(json.loads(lock.read_bytes())["models"]) == {LLAMA, f"{LLAMA}-a", f"{LLAMA}-b"}
    folder = RunFolder.open(tmp_path / "out")
    assert [(r.method, r.pinned, len(r.layers)) for r in folder.records()] == [
        ("experts", True, 0),
        ("gptq", True, 8),
    ]
    read = {f"{LLAMA}/tokenizer.json", f"{LLAMA}-a/model.safetensors", f"{LLAMA}-b/adapter_model.safetensors"}
    assert read <= hub.downloaded()
