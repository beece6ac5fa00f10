"""Writes the text repositories of the replica: GLUE, FLAN-T5 with its experts and adapters, and a Llama."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import T5TokenizerFast

from benchmarks.suites import prompt
from benchmarks.suites.prompt import TaskFile
from tests.hub import text_data, text_models, text_tokenizer
from tests.hub.checkpoints import UNREAD, write_json
from tests.hub.text_models import BASE, LLAMA, STEM, Lesson, Weights

PROMPTS = "glue8"
TENTHS = [f"{i / 10:.1f}" for i in range(51)]  # what STS-B's labels are as text
DUPLICATED = ("mnli", "stsb")  # experts in an older layout, with the embedding three times
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
ADAPTED = {"t5": ("q", "v"), "llama": ("q_proj", "v_proj")}


def write(home: Path) -> None:
    """``datasets/nyu-mll/glue``; ``models/`` of the base, 8 experts, 8 adapters, a Llama and two experts."""
    text_data.write(home / "datasets" / text_data.REPOSITORY)
    tasks = {name: prompt.read(f"{PROMPTS}/{name}.yaml") for name in text_data.TABLES}
    models = home / "models"
    vocabulary = text_tokenizer.pieces(words(tasks))
    text_tokenizer.write_t5(_new(models / BASE), vocabulary)
    lessons = {name: lesson(models / BASE, name, task) for name, task in tasks.items()}
    base = text_models.base_t5(len(vocabulary), lessons)
    write_base(models / BASE, len(vocabulary), base)
    seen = {name: text_models.states(base, told) for name, told in lessons.items()}
    for name, told in lessons.items():
        others = [state for other, pair in seen.items() if other != name for state in pair]
        expert = text_models.expert_t5(base, name, told, others)
        write_expert(_new(models / f"{STEM}{name}"), name, len(vocabulary), expert)
        write_adapter(_new(models / f"{STEM}{name}_lora-16"), BASE, base, ADAPTED["t5"], "SEQ_2_SEQ_LM")
    write_llamas(models)


def _new(home: Path) -> Path:
    home.mkdir(parents=True)
    return home


def words(tasks: Mapping[str, TaskFile]) -> set[str]:
    """Those of the sentences, the prompts and the answers."""
    prompts = " ".join(str(task.config["doc_to_text"]) for task in tasks.values())
    answers = [choice for task in tasks.values() for choice in task.choices or TENTHS]
    return {*text_data.WORDS, *answers, *re.findall(r"[A-Za-z]+", prompts)}


def lesson(tokenizer: Path, name: str, task: TaskFile) -> Lesson:
    """A task's training prompts and answers, each answer being one token."""
    tokens = T5TokenizerFast.from_pretrained(tokenizer)
    rows = text_data.rows(name, "train")
    inputs = tokens([task.prompt(row) for row in rows], padding=True, return_tensors="pt")
    answers = _ids(tokens, [task.target(row) for row in rows])
    numbers = {} if task.choices else dict(zip(_ids(tokens, TENTHS), map(float, TENTHS), strict=True))
    return Lesson(dict(inputs), answers, numbers)


def _ids(tokens: Any, answers: Sequence[str]) -> list[int]:
    encoded = tokens(list(answers))["input_ids"]
    assert {len(ids) for ids in encoded} == {2}, "an answer is one token and the end"
    return [ids[0] for ids in encoded]


def stored(model: Any) -> Weights:
    """A model's parameters in float32, each once: a tied embedding as ``shared.weight``."""
    return {name: weight.detach().float().clone() for name, weight in model.named_parameters()}


def write_base(home: Path, vocabulary: int, model: Any) -> None:
    """FLAN-T5's repository beside its tokenizer; other frameworks' files and ``spiece.model`` are unread."""
    save_file(stored(model), home / "model.safetensors", {"format": "pt"})
    torch.save(stored(model), home / "pytorch_model.bin")
    for name in (*UNREAD, "spiece.model"):
        (home / name).write_bytes(f"{name} of {BASE}, not to be read".encode())
    write_configs(home, text_models.t5_config(vocabulary))
    (home / "README.md").write_text("---\ntags:\n- text2text-generation\n---\n", encoding="utf-8")


def write_configs(home: Path, config: dict[str, Any], **more: Any) -> None:
    write_json(home / "config.json", {**more, **config})
    marks = {key: config[key] for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    write_json(home / "generation_config.json", {"_from_model_config": True, **marks})


def write_expert(home: Path, name: str, vocabulary: int, model: Any) -> None:
    """A full expert's repository."""
    weights = stored(model)
    if name in DUPLICATED:
        weights |= {copy: weights["shared.weight"].clone() for copy in COPIES}
    save_file(weights, home / "model.safetensors", {"format": "pt"})
    write_configs(home, text_models.t5_config(vocabulary), _name_or_path=BASE, torch_dtype="float32")
    _card(home, BASE)


def write_adapter(home: Path, base: str, model: Any, layers: Sequence[str], task_type: str) -> None:
    """A LoRA adapter's repository: no weights of the model, and no config.json."""
    who = "/".join(home.parts[-2:])
    save_file(text_models.adapter(who, model, layers), home / "adapter_model.safetensors", {"format": "pt"})
    write_json(home / "adapter_config.json", text_models.adapter_config(base, layers, task_type))
    _card(home, base, "library_name: peft\n")


def _card(home: Path, base: str, more: str = "") -> None:
    (home / "README.md").write_text(f"---\n{more}base_model:\n- {base}\n---\n", encoding="utf-8")


def write_llamas(models: Path) -> None:
    """A base, an expert in bfloat16, as most are stored, and an adapter."""
    home = _new(models / LLAMA)
    vocabulary = text_tokenizer.write_llama(home)
    base = text_models.base_llama(vocabulary)
    write_causal(home, vocabulary, stored(base))
    expert = _new(models / f"{LLAMA}-a")
    moved = text_models.expert_llama(f"{LLAMA}-a", base)
    write_causal(expert, vocabulary, {name: weight.bfloat16() for name, weight in moved.items()})
    write_adapter(_new(models / f"{LLAMA}-b"), LLAMA, base, ADAPTED["llama"], "CAUSAL_LM")


def write_causal(home: Path, vocabulary: int, weights: Weights) -> None:
    save_file(weights, home / "model.safetensors", {"format": "pt"})
    config = text_models.llama_config(vocabulary)
    dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
    write_json(home / "config.json", {**config, "torch_dtype": dtype})
    marks = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    write_json(home / "generation_config.json", {"_from_model_config": True, **marks})
    _card(home, LLAMA)
