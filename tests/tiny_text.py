"""A complete text suite in miniature: model, tokenizer, experts, data and suite file.

The fixture ``tiny_text`` is one such suite for the whole session, not to be changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import load_file, save_file

from benchmarks import suites
from benchmarks.micro_glue_8.train import build_tokenizer, write_model
from benchmarks.suites import TextSuite
from tests.tiny_t5 import tiny_t5

COLOURS = ["red", "green", "blue", "grey"]
TASKS: dict[str, dict[str, Any]] = {
    "warm": {"answers": ["no", "yes"], "text": "Is {{sentence}} warm? Answer yes or no."},
    "kind": {"answers": ["bird", "tree", "tool"], "text": "What kind is {{sentence}}? bird, tree or tool."},
    "score": {"answers": None, "text": "Rate {{sentence}} from 0 to 3."},
}
TRAIN, TEST = 24, 30
COMPARISON = {
    "merge": ["task-arithmetic"],
    "method": ["rtn", "gptq", "epmq"],
    "target": ["merged"],
    "bits": [4],
    "samples": 8,
    "controls": ["zero-shot", "experts", "merged"],
}


@dataclass(frozen=True)
class TinyText:
    """The suite file and what it names; `folder` holds `base`, `experts/<task>`, `data`, `prompts`."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "tiny-text.json"

    @property
    def suite(self) -> TextSuite:
        found = suites.load(str(self.file))
        assert isinstance(found, TextSuite)
        return found

    def variant(self, path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
        """A changed copy of the suite file, at ``path``, over the same models and data."""
        described = json.loads(self.file.read_text())
        edit(described)
        path.write_text(json.dumps(described))
        return path


def task_file(name: str, answers: list[str] | None, text: str) -> str:
    """A task file's content; JSON is YAML, but for the functions."""
    metric = "spearman_text" if answers is None else "exact_label"
    described = {
        "task": f"tiny_{name}",
        "output_type": "generate_until",
        "doc_to_text": text,
        "doc_to_target": "label" if answers else "{{'{:.1f}'.format(label)}}",
        "generation_kwargs": {"do_sample": False, "until": [], "max_gen_toks": 4},
        "metadata": {"version": 1, **({} if answers else {"label_range": [0.0, 3.0]})},
        **({"doc_to_choice": answers} if answers else {}),
    }
    functions = f"  - metric: !function benchmarks.lm_metrics.{metric}\n"
    functions += (
        f"    aggregation: !function benchmarks.lm_metrics.{metric}_value\n    higher_is_better: true\n"
    )
    lines = [f"{key}: {json.dumps(value)}" for key, value in described.items()]
    return "\n".join([*lines, "metric_list:", functions])


def sentences(count: int, seed: int) -> list[str]:
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        words = torch.randint(len(COLOURS), (int(torch.randint(1, 6, (), generator=g)),), generator=g)
        found.append("the " + " ".join(COLOURS[int(w)] for w in words))
    return found


def write_data(folder: Path, seed: int, answers: list[str] | None) -> None:
    label = datasets.Value("float64") if answers is None else datasets.ClassLabel(names=answers)
    features = datasets.Features({"sentence": datasets.Value("string"), "label": label})
    for split, count in (("train", TRAIN), ("test", TEST)):
        texts = sentences(count, seed + (split == "test"))
        values = [len(t) % 31 / 10 if answers is None else len(t) % len(answers) for t in texts]
        rows = datasets.Dataset.from_dict({"sentence": texts, "label": values}, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def write_models(folder: Path) -> None:
    """A base whose output layer leans towards the answers, and an expert per task with noise around it."""
    answers = [a for task in TASKS.values() for a in task["answers"] or []]
    corpus = [*(t["text"] for t in TASKS.values()), *answers, *sentences(200, 5), "0.0 1.5 2.7 3.0"]
    tokenizer = build_tokenizer(corpus, pieces=120)
    tokenizer.save_pretrained(str(folder / "base"))
    # transformers sizes the generation cache by the encoder: as many layers there as in the decoder
    model = tiny_t5(vocab_size=len(tokenizer), num_layers=3)
    write_model(model, folder / "base")
    base = load_file(folder / "base" / "model.safetensors")
    for number, task in enumerate(TASKS):
        g = torch.Generator().manual_seed(number)
        spread = {
            k: v.float() + 0.2 * v.float().std() * torch.randn(v.shape, generator=g) for k, v in base.items()
        }
        target = folder / "experts" / task
        target.mkdir(parents=True)
        save_file({k: v.half() for k, v in spread.items()}, target / "model.safetensors")


def write_suite(folder: Path) -> TinyText:
    """Models, data, task files and the suite file."""
    write_models(folder)
    (folder / "prompts").mkdir()
    tasks = []
    for number, (name, task) in enumerate(TASKS.items()):
        write_data(folder / "data" / name, 10 * number, task["answers"])
        (folder / "prompts" / f"{name}.yaml").write_text(task_file(name, **task))
        data = {
            "path": str(folder / "data" / name),
            "config": None,
            "revision": None,
            "train_split": "train",
            "eval_split": "test",
            "columns": ["sentence"],
            "label_column": "label",
            "train_size": TRAIN,
            "eval_size": TEST,
            "licence": "CC0",
        }
        expert, prompt = str(folder / "experts" / name), str(folder / "prompts" / f"{name}.yaml")
        tasks.append({"task": name, "dataset": data, "expert": expert, "prompt": prompt})
    described = {
        "name": "tiny-text",
        "version": 1,
        "kind": "text",
        "description": "made up",
        "library": "transformers",
        "architecture": "encoder-decoder",
        "max_length": 64,
        "base": str(folder / "base"),
        "metric": "exact match",
        "comparisons": {"default": COMPARISON},
        "checkpoints": {},
        "tasks": tasks,
    }
    made = TinyText(folder)
    made.file.write_text(json.dumps(described))
    return made
