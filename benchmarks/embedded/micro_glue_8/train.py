"""The recipe behind the weights of ``micro-glue-8``: one base T5 and eight experts.

``nox -s train-micro`` runs it. It is seeded, resumes from its last checkpoint when it was killed, and
reads only the data bundled beside this file:

1. ``tokenizer``: 8,192 pieces, lower case, from the training texts and the prompts (``vocabulary``).
2. ``base``: a small encoder-decoder of T5's architecture, trained at once on span denoising of all training
   texts, on a part of the rows of four tasks, and on the form of the other four: their prompts with one of
   the task's answers drawn at random, so that every answer is valid from the start and says nothing.
3. ``experts``: for every task, all parameters are fine-tuned from the float16 base on its training rows.
   Some learn further lessons made from training rows (``lessons``, ``order``).

A tenth of each task's training split is held out here, measures convergence and is what choices were made
by; no test sample is read. Losses and held-out scores land in ``logs/`` beside the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks.embedded.micro_glue_8.answers import (
    Pairs,
    Row,
    draws,
    encoded,
    held_out,
    score,
    task_answers,
    text_loss,
)
from benchmarks.embedded.micro_glue_8.experts import EXPERTS, train_expert
from benchmarks.embedded.micro_glue_8.lessons import lessons_of
from benchmarks.embedded.micro_glue_8.order import Swaps, in_order
from benchmarks.embedded.micro_glue_8.vocabulary import SENTINELS, build_tokenizer
from benchmarks.embedded.micro_glue_8.weights import fresh_model, read_model, write_model
from benchmarks.embedded.training import Options, Schedule, optimise, step_generator
from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import TextSuite

HERE = Path(__file__).parent
SHOWN = {"snli": 0.25, "caption-paraphrase": 0.5, "sarcasm": 0.25, "supersense": 0.5}  # shares of their rows
CORRUPTED, SPAN = 0.15, 3  # span denoising: share of tokens replaced, mean length of a span
BASE = Schedule(steps=2000, batch=48, lr=2e-3, weight_decay=0.05, warmup=150)
LAST = Schedule(steps=200, batch=64, lr=1e-3, weight_decay=0.05, warmup=20)  # of the base, on questions alone
FORM = 3000  # prompts of each other task that the base answers with any of its answers


Asked = list[tuple[list[int], list[list[int]]]]  # prompts and the answers to draw from


def rows(task: str) -> list[Row]:
    """The bundled training rows of one task."""
    found: list[Row] = load_dataset(str(HERE / "data" / task), split="train").to_list()
    return found


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


def shown_to_base(tasks: dict[str, Pairs]) -> tuple[Asked, Asked]:
    """What the base is asked: rows of tasks that it learns, and prompts of which it learns the form alone."""
    known, form = [], []
    for task, data in tasks.items():
        train = data.subset(held_out(len(data), task)[0])
        if task in SHOWN:
            part = train.subset(torch.arange(int(SHOWN[task] * len(train))))
            said = part.ids[part.taught.argmax(1)].tolist()
            known += [(source, [[answer, 1]]) for source, answer in zip(part.sources, said, strict=True)]
        else:
            step = (
                len(train.ids) // 8 if train.labels else 1
            )  # of a scale, nine scores; more are learnt thinly
            any_of = [[int(answer), 1] for answer in train.ids[::step]]
            form += [(source, any_of) for source in train.sources[:FORM]]
    return known, form


def questions(
    asked: tuple[Asked, Asked], drawn: list[Tensor], g: torch.Generator
) -> list[tuple[list[int], list[int]]]:
    """Prompts and one of their answers, as token ids."""
    both = [part[int(i)] for part, index in zip(asked, drawn, strict=True) for i in index]
    return [(source, answers[int(torch.randint(len(answers), (), generator=g))]) for source, answers in both]


def ranked(model: Any, tasks: dict[str, Pairs]) -> dict[str, float]:
    """The likeliest answers' scores on held-out rows, and the share of valid answers, in percent."""
    held = {task: data.subset(held_out(len(data), task)[1]) for task, data in tasks.items()}
    found = {task: score(model, data) for task, data in held.items()}
    valid = sum(scores["valid"] for scores in found.values()) / len(found)
    return {**{task: scores["ranked"] for task, scores in found.items()}, "valid": valid}


def train_base(
    tasks: dict[str, Pairs],
    texts: list[list[int]],
    tokenizer: Any,
    out: Path,
    work: Path,
    schedule: Schedule,
) -> list[dict[str, float]]:
    asked = shown_to_base(tasks)
    first = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    model = fresh_model(len(tokenizer))
    prompts = [[source for source, _ in part] for part in asked]
    sizes = [schedule.batch, schedule.batch, schedule.batch // 6]
    drawn = draws([texts, *prompts], sizes, schedule.steps)

    def loss_at(step: int) -> Tensor:
        g = step_generator("spans", step)
        plain, *questioned = drawn[step]
        noisy = [corrupted(texts[int(i)], first, g) for i in plain]
        return text_loss(model, noisy) + text_loss(model, questions(asked, questioned, g))

    log = optimise(
        "base",
        model,
        list(model.parameters()),
        schedule,
        loss_at,
        work / "base.pt",
        lambda: ranked(model, tasks),
    )
    write_model(model, out / "base")
    return log


def train_form(tasks: dict[str, Pairs], out: Path, work: Path, schedule: Schedule) -> list[dict[str, float]]:
    """The base's last steps, on questions alone, half of them of tasks of which it learns the form."""
    model = read_model(out / "base", 0.0)
    asked = shown_to_base(tasks)
    prompts = [[source for source, _ in part] for part in asked]
    drawn = draws(prompts, [schedule.batch // 2] * 2, schedule.steps, "form")

    def loss_at(step: int) -> Tensor:
        return text_loss(model, questions(asked, drawn[step], step_generator("form", step)))

    log = optimise(
        "form",
        model,
        list(model.parameters()),
        schedule,
        loss_at,
        work / "form.pt",
        lambda: ranked(model, tasks),
    )
    write_model(model, out / "base")
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
        scores = [a for task in read.values() if task.metric == "spearman" for a in task_answers(task)]
        build_tokenizer(corpus, scores=scores).save_pretrained(str(options.out / "base"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.out / "base")
    tasks = {name: encoded(tokenizer, task, data[name]) for name, task in read.items()}
    if options.wants("base"):
        raw = [r[c] for t in suite.tasks for r in data[t.task] for c in t.dataset.columns if c != "category"]
        texts = tokenizer(raw).input_ids
        schedule = BASE.scaled(options.scale)
        options.note("base", train_base(tasks, texts, tokenizer, options.out, options.work, schedule))
        options.note("form", train_form(tasks, options.out, options.work, LAST.scaled(options.scale)))
    for t in suite.tasks:
        if options.wants(t.task):
            lessons, swaps = lessons_of(t, read[t.task], data, tokenizer), None
            if t.task == "acceptability":
                swaps = Swaps(tokenizer, read[t.task], in_order(data), *EXPERTS[t.task].fresh(options.scale))
            log = train_expert(t.task, tasks, lessons, swaps, options.out, options.work, options.scale)
            options.note(t.task, log)


if __name__ == "__main__":
    main()
