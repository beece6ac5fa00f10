"""The real clients against the replica's text repositories: GLUE, FLAN-T5, its experts, adapters, Llama."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import TextTask
from epmq.checkpoints.lora import lora_merged
from tests.hub import text_data, text_models
from tests.hub.client import Client
from tests.hub.content import build_text, shared
from tests.hub.server import Hub
from tests.hub.suites import TEXT_NAMES, write_suites
from tests.hub.text_data import EVAL, TABLES, TRAIN
from tests.hub.text_models import BASE, LLAMA, STEM
from tests.hub.text_tokenizer import SENTINELS

TASKS = {task.task: task for task in suites.load("flan-t5-base-glue8").tasks if isinstance(task, TextTask)}
LOAD_DATA = """
from datasets import disable_progress_bars, load_dataset
disable_progress_bars()
splits = load_dataset("nyu-mll/glue", config)
rows = splits["train"]
label = rows.features["label"]
answer = {
    "rows": {name: part.num_rows for name, part in splits.items()},
    "columns": rows.column_names,
    "label": getattr(label, "names", None) or label.dtype,
    "first": rows[0],
    "tests": sorted({row for name, part in splits.items() if "test" in name for row in part["label"]}),
}
"""
LOAD_MODEL = """
import torch
from transformers import AutoModelForSeq2SeqLM
model, info = AutoModelForSeq2SeqLM.from_pretrained(repo, output_loading_info=True)
answer = {
    "problems": [str(keys) for keys in info.values() if keys],
    "untied": not torch.equal(model.lm_head.weight, model.shared.weight),
    "one embedding": model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight,
    "scaled": model.config.scale_decoder_outputs,
    "head": float(model.lm_head.weight.double().sum()),
    "parameters": sum(weight.numel() for weight in model.parameters()),
}
"""
ANSWERS = """
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
model, tokens = AutoModelForSeq2SeqLM.from_pretrained(repo), AutoTokenizer.from_pretrained(base)
inputs = tokens(prompts, padding=True, return_tensors="pt")
answer = tokens.batch_decode(model.generate(**inputs, max_length=10), skip_special_tokens=True)
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_text(shared(tmp_path_factory))


@pytest.fixture(scope="module")
def hub(content: Path) -> Iterator[Hub]:
    with Hub(content) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(hub.env(tmp_path_factory.mktemp("home"))) as client:
        yield client


def tensors(content: Path, repo: str) -> dict[str, Tensor]:
    return load_file(content / "models" / repo / "model.safetensors")


@pytest.mark.parametrize("config", TABLES)
def test_a_configuration_has_the_columns_splits_and_labels_of_glue(config: str, client: Client) -> None:
    table, found = TABLES[config], client.run(LOAD_DATA, config=config)
    assert found["rows"] == table.splits
    assert found["columns"] == [*table.columns, "label", "idx"]
    assert found["label"] == (list(table.classes) or "float32")
    first = text_data.rows(config, "train")[0]
    assert found["first"] == {**first, "label": pytest.approx(first["label"])}  # float32 in the files
    assert (found["tests"] == [-1]) == (config != "mrpc")


def test_the_suites_read_splits_and_columns_that_are_there() -> None:
    assert set(TASKS) == set(TABLES)
    for name, task in TASKS.items():
        sizes = TABLES[name].splits
        assert (sizes[task.dataset.train_split], sizes[task.dataset.eval_split]) == (TRAIN, EVAL)
        assert set(task.dataset.columns) <= set(TABLES[name].columns)


@pytest.mark.parametrize("repo", [BASE, f"{STEM}cola", f"{STEM}mnli", f"{STEM}stsb"])
def test_a_model_loads_with_its_own_output_layer(repo: str, client: Client, content: Path, hub: Hub) -> None:
    found, stored = client.run(LOAD_MODEL, repo=repo), tensors(content, repo)
    assert found["problems"] == []
    assert found["untied"]
    assert found["one embedding"]
    assert found["scaled"] is False, "the sign of an untied checkpoint"
    assert found["head"] == pytest.approx(float(stored["lm_head.weight"].double().sum()))
    copies = [name for name in stored if name.endswith("embed_tokens.weight")]
    assert len(copies) == (2 if repo.endswith(("mnli", "stsb")) else 0)
    counted = sum(weight.numel() for name, weight in stored.items() if name not in copies)
    assert found["parameters"] == counted
    assert not any(name.startswith(BASE) and name.endswith((".bin", ".h5")) for name in hub.downloaded())


def test_the_configuration_says_that_the_output_layer_is_untied(content: Path) -> None:
    for repo in (BASE, *(f"{STEM}{task}" for task in TABLES)):
        config = json.loads((content / "models" / repo / "config.json").read_bytes())
        assert config["tie_word_embeddings"] is False
        assert config["feed_forward_proj"] == "gated-gelu"


def test_the_tokenizer_has_t5s_marks_and_one_token_for_every_answer(client: Client) -> None:
    code = (
        "from transformers import AutoTokenizer\n"
        "tokens = AutoTokenizer.from_pretrained(repo)\n"
        "marks = [tokens.pad_token_id, tokens.eos_token_id, tokens.unk_token_id, tokens.model_max_length]\n"
        "ids = tokens(texts)['input_ids']\n"
        "answer = [marks, len(tokens), ids, tokens.batch_decode(ids, skip_special_tokens=True)]"
    )
    answers = [choice for task in TASKS.values() for choice in prompt.read(task.prompt).choices or ("3.4",)]
    texts = [*answers, "Answere with 'yes' {or} \"no\"?"]
    marks, size, encoded, decoded = client.run(code, repo=BASE, texts=texts)
    assert marks == [0, 1, 2, 512]
    assert decoded == texts
    assert {len(ids) for ids in encoded[:-1]} == {2}
    assert all(ids[-1] == 1 and 2 not in ids for ids in encoded)
    assert max(max(ids) for ids in encoded) < size - SENTINELS


def test_embeddings_have_more_rows_than_the_tokenizer_has_tokens(content: Path) -> None:
    tokenizer = json.loads((content / "models" / BASE / "tokenizer.json").read_bytes())
    rows, _ = tensors(content, BASE)["shared.weight"].shape
    assert rows == len(tokenizer["model"]["vocab"]) + 28  # 32,128 and 32,100 in the original


def test_experts_differ_from_the_base_in_every_matrix(content: Path) -> None:
    base = tensors(content, BASE)
    for task in TABLES:
        stored = tensors(content, f"{STEM}{task}")
        expert = {name: weight for name, weight in stored.items() if "embed_tokens" not in name}
        assert set(expert) == set(base)
        for name, weight in expert.items():
            assert weight.isfinite().all()
            if weight.ndim == 2:
                assert (weight - base[name]).norm() > 0.003 * base[name].norm(), (task, name)


@pytest.mark.parametrize("task", TABLES)
def test_an_adapter_changes_what_it_names_and_no_more(task: str, content: Path) -> None:
    home, base = content / "models" / f"{STEM}{task}_lora-16", tensors(content, BASE)
    config = json.loads((home / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (16, 32, ["q", "v"])
    assert not (home / "model.safetensors").exists()
    merged = lora_merged(base, home)
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {name for name in base if name.endswith((".q.weight", ".v.weight"))}
    for name in changed:
        assert 0.02 < (merged[name] - base[name]).norm() / base[name].norm() < 0.5, name


def right(client: Client, repo: str, config: str) -> float:
    """Share of evaluated rows whose answer is the wanted one; for numbers, that are nearer than 1."""
    task = prompt.read(TASKS[config].prompt)
    rows = text_data.rows(config, TASKS[config].dataset.eval_split)
    said = client.run(ANSWERS, repo=repo, base=BASE, prompts=[task.prompt(row) for row in rows])
    wanted = [task.target(row) for row in rows]
    pairs = zip(said, wanted, strict=True)
    hits: list[bool] = [a == b if task.choices else abs(float(a) - float(b)) < 1 for a, b in pairs]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("config", TABLES)
def test_an_expert_answers_and_better_than_the_base(config: str, client: Client) -> None:
    base, expert = (right(client, repo, config) for repo in (BASE, f"{STEM}{config}"))
    assert expert >= base + 0.1
    assert expert > 0.5


def test_causal_models_load_from_weights_and_from_adapter(client: Client, content: Path) -> None:
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, info = AutoModelForCausalLM.from_pretrained(repo, output_loading_info=True)\n"
        "tokens = AutoTokenizer.from_pretrained(base)\n"
        "ids = tokens('a café', return_tensors='pt')['input_ids']\n"
        "shape = list(model(ids).logits.shape)\n"
        "answer = [[str(keys) for keys in info.values() if keys], shape, tokens.decode(ids[0, 1:])]"
    )
    for repo in (LLAMA, f"{LLAMA}-a"):
        assert client.run(code, repo=repo, base=LLAMA) == [[], [1, 8, 258], "a café"]
    expert, base = tensors(content, f"{LLAMA}-a"), tensors(content, LLAMA)
    assert {weight.dtype for weight in expert.values()} == {torch.bfloat16}
    assert not any(
        torch.equal(weight.float(), base[name]) for name, weight in expert.items() if weight.ndim > 1
    )
    merged = lora_merged(base, content / "models" / f"{LLAMA}-b")
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {name for name in base if name.endswith(("q_proj.weight", "v_proj.weight"))}


@pytest.mark.keeps_rng
def test_the_content_follows_from_names_alone_and_is_built_once(content: Path, tmp_path: Path) -> None:
    assert build_text(content.parent) == content
    again = build_text(tmp_path)
    assert again.name == content.name
    files = sorted(path.relative_to(content) for path in content.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    # pickles of torch hold an id of their own
    differ = [name for name in files if (content / name).read_bytes() != (again / name).read_bytes()]
    assert [name for name in differ if name.suffix != ".bin"] == []
    assert sum((content / name).stat().st_size for name in files) < 10_000_000


def test_rehearsal_suites_differ_from_the_bundled_in_counts_alone(tmp_path: Path) -> None:
    for name, file in zip(TEXT_NAMES, write_suites(tmp_path, TEXT_NAMES), strict=True):
        made, bundled = suites.load(str(file)), suites.load(name)
        assert (made.rehearsal, bundled.rehearsal) == (True, False)
        counts = {"train_size", "eval_size"}
        for mine, theirs in zip(made.tasks, bundled.tasks, strict=True):
            assert (mine.dataset.train_size, mine.dataset.eval_size) == (TRAIN, EVAL)
            assert mine.dataset.model_dump(exclude=counts) == theirs.dataset.model_dump(exclude=counts)
        changed: Any = {"rehearsal": True, "comparisons": True, "tasks": {"__all__": {"dataset": counts}}}
        assert made.model_dump(exclude=changed) == bundled.model_dump(exclude=changed)
        assert all(comparison.samples == [TRAIN] for comparison in made.comparisons.values())


def test_labels_of_every_class_are_drawn_and_numbers_have_ties_after_rounding() -> None:
    for config, table in TABLES.items():
        labels = [row["label"] for row in text_data.rows(config, "train")]
        if table.classes:
            assert set(labels) == set(range(len(table.classes)))
        else:
            assert (min(labels), max(labels)) == (0, 5)
            assert any(round(label, 1) != label for label in labels), "the reference is text with one decimal"


def test_a_base_is_drawn_from_its_id() -> None:
    one, other = (text_models.random_t5(120, [5, 6]).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
