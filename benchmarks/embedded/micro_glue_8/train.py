"""The recipe behind the weights of ``micro-glue-8``: one base T5 and eight experts.

``nox -s train-micro`` runs it. It is seeded, resumes from its last checkpoint when it was killed, and
reads only the data bundled beside this file:

1. ``tokenizer``: a unigram model of 1,536 pieces, lower case, from the training texts and the prompts.
2. ``base``: a small encoder-decoder of FLAN-T5's architecture, trained on span denoising of all training
   texts and on a part of the tasks (six of the eight, a quarter of their training rows each), so that it
   knows some prompts a little and two not at all.
3. ``experts``: for every task, all parameters are fine-tuned from the float16 base on its training rows.

A tenth of each task's training split is held out here and only measures convergence; no test sample is
read. Losses and held-out scores land in ``logs/`` beside the weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from safetensors.torch import save_file
from scipy.stats import spearmanr
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from benchmarks.embedded.training import (
    Options,
    Schedule,
    atomically,
    batches_alike,
    optimise,
    step_generator,
    step_seed,
)
from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import TextSuite
from benchmarks.suites.prompt import TaskFile
from benchmarks.text.metrics import number

HERE = Path(__file__).parent
PIECES = 1536
SENTINELS = 16
SHOWN = 0.25  # of the training rows of the tasks that the base sees
UNSEEN = ("sms-spam", "definition")  # tasks that the base does not see
HELD_OUT = 0.10  # of each task's training split, to measure convergence
MEASURED = 256  # held-out rows of each task that are generated from at a time
CORRUPTED, SPAN = 0.15, 3  # span denoising: share of tokens replaced, mean length of a span
MODEL_CFG: dict[str, Any] = {
    "d_model": 96,
    "d_kv": 24,
    "num_heads": 4,
    "d_ff": 192,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
BASE = Schedule(steps=4500, batch=64, lr=2e-3, weight_decay=0.05, warmup=300)
EXPERT = Schedule(steps=1200, batch=64, lr=1e-3, weight_decay=0.05, warmup=100)
STEPS = {"snli": 2400, "sentiment": 800, "sms-spam": 400}  # of experts whose task is hard, or has few rows
DROPOUT = 0.1  # of experts: their rows are few
UNDERFIT = ("acceptability",)  # whose held-out accuracy is better without dropout


@dataclass
class Pairs:
    """Prompts and targets of one task, as text and as token ids that end in ``</s>``."""

    prompts: list[str]
    targets: list[str]
    sources: list[list[int]]
    outputs: list[list[int]]
    spearman: bool

    def subset(self, index: Tensor) -> Pairs:
        def take(values: list[Any]) -> list[Any]:
            return [values[int(i)] for i in index]

        fields = (take(self.prompts), take(self.targets), take(self.sources), take(self.outputs))
        return Pairs(*fields, self.spearman)


def rows(task: str) -> list[dict[str, Any]]:
    """The bundled training rows of one task."""
    found: list[dict[str, Any]] = load_dataset(str(HERE / "data" / task), split="train").to_list()
    return found


def build_tokenizer(corpus: list[str], pieces: int = PIECES) -> PreTrainedTokenizerFast:
    """A unigram tokenizer with T5's special tokens: ``<pad>`` 0, ``</s>`` 1, ``<unk>`` 2, sentinels last."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=pieces - SENTINELS, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([f"<extra_id_{i}>" for i in range(SENTINELS)])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def encoded(tokenizer: Any, task: TaskFile, data: list[dict[str, Any]]) -> Pairs:
    prompts, targets = [task.prompt(row) for row in data], [task.target(row) for row in data]
    sources, outputs = (tokenizer(texts).input_ids for texts in (prompts, targets))
    return Pairs(prompts, targets, sources, outputs, task.metric == "spearman")


def split_held_out(data: Pairs, task: str) -> tuple[Pairs, Pairs]:
    order = torch.randperm(len(data.prompts), generator=step_generator("held-out", task))
    cut = int(len(order) * HELD_OUT)
    return data.subset(order[cut:]), data.subset(order[:cut])


def padded(ids: list[list[int]], value: int) -> Tensor:
    """Integer matrix ``(n, longest)``, filled up with ``value``."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(i) for i in ids], batch_first=True, padding_value=value
    )


def loss_of(model: Any, pairs: list[tuple[list[int], list[int]]]) -> Tensor:
    """Mean cross-entropy of the targets' tokens, for pairs of source and target."""
    x, labels = padded([pair[0] for pair in pairs], 0), padded([pair[1] for pair in pairs], -100)
    loss: Tensor = model(input_ids=x, attention_mask=(x != 0).long(), labels=labels).loss
    return loss


def corrupted(ids: list[int], first_sentinel: int, g: torch.Generator) -> tuple[list[int], list[int]]:
    """Span denoising (Raffel et al. 2020, section 3.1.4): source with sentinels, target with the spans."""
    body = ids[:-1]
    spans = max(1, round(len(body) * CORRUPTED / SPAN))
    starts = sorted(torch.randperm(max(1, len(body)), generator=g)[:spans].tolist())
    source, target, at = [], [], 0
    for k, start in enumerate(starts[: SENTINELS - 1]):
        if start < at:
            continue
        end = min(len(body), start + SPAN)
        source += [*body[at:start], first_sentinel + k]
        target += [first_sentinel + k, *body[start:end]]
        at = end
    return [*source, *body[at:], 1], [*target, 1]


@torch.no_grad()
def score(model: Any, tokenizer: Any, data: Pairs) -> float:
    """Exact match of greedy generation, or Spearman's rho with unparsable outputs as 0.0, in percent."""
    x = padded(data.sources[:MEASURED], 0)
    out = model.generate(input_ids=x, attention_mask=(x != 0).long(), max_length=10)
    said, wanted = tokenizer.batch_decode(out, skip_special_tokens=True), data.targets[:MEASURED]
    if not data.spearman:
        return 100 * float(np.mean([a == b for a, b in zip(said, wanted, strict=True)]))
    rho = float(spearmanr([number(s) for s in said], [float(t) for t in wanted]).statistic)
    return 0.0 if math.isnan(rho) else 100 * rho


def fresh_model(vocabulary: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(step_seed("model"))
        model = T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, **MODEL_CFG))
        own = torch.randn(vocabulary, MODEL_CFG["d_model"]) * MODEL_CFG["d_model"] ** -0.5
        model.lm_head.weight = torch.nn.Parameter(own)  # FLAN-T5's head is not its embedding
    return model


def write_model(model: Any, out: Path) -> None:
    """A transformers model folder's config and float16 weights."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads(model.config.to_json_string()) | {"tie_word_embeddings": False}
    atomically(out / "config.json", lambda p: p.write_text(json.dumps(config, indent=2) + "\n"))
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    atomically(out / "model.safetensors", lambda p: save_file(tensors, p, metadata={"format": "pt"}))


def read_model(folder: Path, dropout: float) -> Any:
    """The float32 model of a folder that ``write_model`` made."""
    return T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, dropout_rate=dropout)


def train_base(
    tasks: dict[str, Pairs], texts: list[list[int]], tokenizer: Any, out: Path, work: Path, schedule: Schedule
) -> list[dict[str, float]]:
    shown, held = [], {}
    for task, data in tasks.items():
        train, held[task] = split_held_out(data, task)
        if task not in UNSEEN:
            shown.append(train.subset(torch.arange(int(SHOWN * len(train.prompts)))))
    sources = [ids for part in shown for ids in part.sources]
    outputs = [ids for part in shown for ids in part.outputs]
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    model = fresh_model(len(tokenizer))
    orders = [
        batches_alike(list(map(len, texts)), schedule.batch, "denoise"),
        batches_alike(list(map(len, sources)), schedule.batch, "tasks"),
    ]
    drawn = [pair for _, *pair in zip(range(schedule.steps), *orders, strict=False)]

    def loss_at(step: int) -> Tensor:
        g = step_generator("spans", step)
        noisy = [corrupted(texts[int(i)], first, g) for i in drawn[step][0]]
        part = [(sources[int(i)], outputs[int(i)]) for i in drawn[step][1]]
        return loss_of(model, noisy) + loss_of(model, part)

    def measure() -> dict[str, float]:
        found = {t: score(model, tokenizer, d) for t, d in held.items()}
        return {**found, "average": sum(found.values()) / len(found)}

    log = optimise("base", model, list(model.parameters()), schedule, loss_at, work / "base.pt", measure)
    write_model(model, out / "base")
    return log


def train_expert(
    task: str, data: Pairs, tokenizer: Any, out: Path, work: Path, schedule: Schedule
) -> list[dict[str, float]]:
    model = read_model(out / "base", 0.0 if task in UNDERFIT else DROPOUT)
    train, held = split_held_out(data, task)
    order = [
        i
        for _, i in zip(
            range(schedule.steps),
            batches_alike(list(map(len, train.sources)), schedule.batch, task),
            strict=False,
        )
    ]

    def loss_at(step: int) -> Tensor:
        part = train.subset(order[step])
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(task, "dropout", step))
            return loss_of(model, list(zip(part.sources, part.outputs, strict=True)))

    def measure() -> dict[str, float]:
        return {"held_out": score(model, tokenizer, held)}

    log = optimise(task, model, list(model.parameters()), schedule, loss_at, work / f"{task}.pt", measure)
    write_model(model, out / "experts" / task)
    return log


def main() -> None:
    options = Options.parse(__doc__, HERE / "models", Path(".cache/train-micro-glue"))
    suite = suites.load("micro-glue-8")
    assert isinstance(suite, TextSuite)
    read = {t.task: prompt.read(t.prompt) for t in suite.tasks}
    data = {task: rows(task) for task in read}
    if not (options.out / "base" / "tokenizer.json").exists():
        corpus = [
            text for t, task in read.items() for r in data[t] for text in (task.prompt(r), task.target(r))
        ]
        build_tokenizer(corpus).save_pretrained(str(options.out / "base"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.out / "base")
    tasks = {name: encoded(tokenizer, task, data[name]) for name, task in read.items()}
    if options.wants("base"):
        raw = [r[c] for t in suite.tasks for r in data[t.task] for c in t.dataset.columns if c != "category"]
        texts = tokenizer(raw).input_ids
        options.note(
            "base", train_base(tasks, texts, tokenizer, options.out, options.work, BASE.scaled(options.scale))
        )
    for task, pairs in tasks.items():
        if options.wants(task):
            schedule = replace(EXPERT, steps=STEPS.get(task, EXPERT.steps)).scaled(options.scale)
            options.note(task, train_expert(task, pairs, tokenizer, options.out, options.work, schedule))


if __name__ == "__main__":
    main()
