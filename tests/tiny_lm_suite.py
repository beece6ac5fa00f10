"""What ``epmq run lm`` takes, in miniature: a small Llama, two experts of it (one LoRA), two tasks with data.

The base has learnt a little of both tasks; each expert has learnt its own.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

COLOURS, NOUNS = ["red", "green", "blue"], ["hat", "car", "door", "boat", "lamp", "cup"]
FILLERS = ["a", "the", "old", "new", "big", "small", "near", "my", "your", "one"]
SPECIAL = ["<pad>", "</s>", "<unk>"]
PROMPTS = {
    "colour": ("Which colour is the thing in {{sentence}} ?", COLOURS),
    "thing": ("Of {{sentence}} and {{other}} which thing comes first ?", NOUNS),
}
TRAIN, TEST = 96, 60
RANK = 8
FILE = """\
task: {task}
dataset_path: {data}
training_split: train
validation_split: validation
output_type: generate_until
doc_to_text: "{prompt}"
doc_to_choice: {choices}
doc_to_target: label
generation_kwargs: {{do_sample: false, until: [], max_gen_toks: 3}}
metric_list:
  - metric: !function benchmarks.lm_metrics.exact_label
    aggregation: !function benchmarks.lm_metrics.exact_label_value
    higher_is_better: true
metadata: {{version: 1}}
"""
Rows = dict[str, list[Any]]


@dataclass(frozen=True)
class TinyLmSuite:
    """Folders of the models, and the task files in the experts' order (the second expert is LoRA)."""

    base: Path
    experts: list[Path]
    tasks: list[Path]

    @property
    def arguments(self) -> list[str]:
        """Of ``epmq run``."""
        given = ["lm", "--base", self.base, "--expert", *self.experts, "--tasks", *self.tasks]
        return list(map(str, given))


def rows(task: str, count: int, seed: int) -> Rows:
    """Sentences of a few words; the label follows from them."""
    g = torch.Generator().manual_seed(seed)

    def draw(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=g))]

    def sentence(noun: str) -> str:
        length = int(torch.randint(1, 4, (1,), generator=g))
        return " ".join([*(draw(FILLERS) for _ in range(length)), draw(COLOURS), noun])

    nouns = [draw(NOUNS) for _ in range(count)]
    found: Rows = {"sentence": [sentence(noun) for noun in nouns]}
    if task == "colour":
        return {**found, "label": [COLOURS.index(text.split()[-2]) for text in found["sentence"]]}
    others = [sentence(draw(NOUNS)) for _ in nouns]
    return {**found, "other": others, "label": [NOUNS.index(noun) for noun in nouns]}


def words() -> PreTrainedTokenizerFast:
    """One id for each word; a model like Llama, but without a token at the beginning."""
    split = pre_tokenizers.WhitespaceSplit()
    texts = [text.replace("{{", "").replace("}}", "") for text, _ in PROMPTS.values()]
    known = [word for text in texts for word in text.split()]
    known += [*COLOURS, *NOUNS, *FILLERS]
    tokenizer = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *known]))}, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
    )


def pairs(task: str, given: Rows) -> list[tuple[str, str]]:
    """Prompt and answer of every row."""
    prompt, choices = PROMPTS[task]
    found = []
    for values in zip(*given.values(), strict=True):
        row, text = dict(zip(given, values, strict=True)), prompt
        for name, value in row.items():
            text = text.replace(f"{{{{{name}}}}}", str(value))
        found.append((text, choices[row["label"]]))
    return found


def learn(model: Any, tokenizer: PreTrainedTokenizerFast, tasks: list[str], steps: int) -> Any:
    """The model after some steps on whole batches of the tasks' training rows; only answers are learnt."""
    model = copy.deepcopy(model).train().requires_grad_(True)
    known = [pair for task in tasks for pair in pairs(task, rows(task, TRAIN, 0))]
    texts = [f"{prompt} {answer} </s>" for prompt, answer in known]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    labels = inputs.input_ids.clone()
    lengths = inputs.attention_mask.sum(1, keepdim=True)
    places = torch.arange(labels.shape[1])
    labels[(places < lengths - 2) | (places >= lengths)] = -100
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model(
            **{name: inputs[name] for name in ("input_ids", "attention_mask")}, labels=labels
        ).loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def base_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def as_lora(base: Any, expert: Any) -> dict[str, Tensor]:
    """The best low-rank adapter of what an expert's linear layers moved, under PEFT's names."""
    found = {}
    for name, layer in base.model.named_modules():
        if isinstance(layer, nn.Linear):
            moved = expert.model.get_submodule(name).weight - layer.weight
            u, s, v = torch.linalg.svd(moved, full_matrices=False)
            where = f"base_model.model.model.{name}.lora_"
            found[f"{where}A.weight"] = v[:RANK].contiguous()
            found[f"{where}B.weight"] = (u[:, :RANK] * s[:RANK] / 2).contiguous()
    return found


def write_lora(tensors: dict[str, Tensor], folder: Path, base: Path) -> None:
    """The factor of the product is 2."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "bias": "none"}))
    save_file(tensors, folder / "adapter_model.safetensors")


def write_task(task: str, folder: Path) -> Path:
    """Its data as parquet files, and the task file beside them, which names them by a relative path."""
    data = folder / f"{task}-data"
    data.mkdir()
    for seed, (split, count) in enumerate((("train", TRAIN), ("validation", TEST))):
        Dataset.from_dict(rows(task, count, seed)).to_parquet(data / f"{split}.parquet")
    prompt, choices = PROMPTS[task]
    file = folder / f"{task}.yaml"
    file.write_text(FILE.format(task=task, data=data.name, prompt=prompt, choices=json.dumps(choices)))
    return file


def write_lm_suite(folder: Path) -> TinyLmSuite:
    """Everything, in folders below ``folder``."""
    tokenizer, names = words(), list(PROMPTS)
    base = learn(base_model(tokenizer), tokenizer, names, 12)
    made = TinyLmSuite(
        folder / "base", [folder / "full", folder / "lora"], [write_task(n, folder) for n in names]
    )
    base.save_pretrained(made.base)
    tokenizer.save_pretrained(made.base)
    learn(base, tokenizer, names[:1], 60).save_pretrained(made.experts[0])
    write_lora(as_lora(base, learn(base, tokenizer, names[1:], 60)), made.experts[1], made.base)
    return made
