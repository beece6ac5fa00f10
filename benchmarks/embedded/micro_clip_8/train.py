"""The recipe behind the weights of ``micro-clip-8``: one base CLIP and eight experts.

``nox -s train-micro`` runs it. It is seeded, resumes from its last checkpoint when it was killed, and
reads only the data bundled beside this file:

1. ``base``: label-aware contrastive training of a small open_clip model on 300 QuickDraw classes that no
   task uses, plus 2 % of every task's training labels, so that the base has seen the tasks' words but
   knows the tasks badly (as CLIP does).
2. ``experts``: for every task, the image tower alone is fine-tuned from the float16 base with the frozen
   zero-shot head of the task's own prompts; text tower and projection stay those of the base.

A tenth of each task's training split is held out here and only measures convergence; no test sample is
read. Losses and held-out accuracies land in ``logs/`` beside the weights.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from datasets import load_dataset
from open_clip.model import CLIP
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from benchmarks.embedded.training import (
    SEED,
    Options,
    Schedule,
    atomically,
    batches,
    optimise,
    step_generator,
)

HERE = Path(__file__).parent
SUITE_FILE = HERE.parent / "suites" / "micro-clip-8.json"
LABEL_SHARE = 0.02  # of each task's training labels, shown to the base
HELD_OUT = 0.10  # of each task's training split, to measure convergence
SKETCH_TEMPLATES = ["a sketch of a {c}.", "a drawing of a {c}.", "a doodle of a {c}."]
MODEL_CFG: dict[str, Any] = {
    "embed_dim": 96,
    "vision_cfg": {
        "image_size": 28,
        "patch_size": 7,
        "width": 96,
        "layers": 6,
        "head_width": 24,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 0,  # filled in from the tokenizer
        "hf_tokenizer_name": "micro-clip-8",
        "width": 96,
        "heads": 4,
        "layers": 2,
    },
}
PREPROCESS_CFG: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


BASE = Schedule(steps=7000, batch=192, lr=1e-3, weight_decay=0.1, warmup=300)
EXPERT = Schedule(steps=800, batch=128, lr=3e-4, weight_decay=0.1, warmup=80)


@dataclass
class Labelled:
    """Images ``(n, 3, h, w)`` float32 in [0, 1] with integer labels ``(n,)`` and their class names."""

    images: Tensor
    labels: Tensor
    names: list[str]
    templates: list[str]

    def subset(self, index: Tensor) -> Labelled:
        return Labelled(self.images[index], self.labels[index], self.names, self.templates)


def load_split(folder: Path, names: list[str] | None, templates: list[str], split: str = "train") -> Labelled:
    """A bundled split of one data set, preprocessed but not normalised."""
    data = load_dataset(str(folder), split=split)
    resize = open_clip.image_transform(
        MODEL_CFG["vision_cfg"]["image_size"], is_train=False, mean=(0, 0, 0), std=(1, 1, 1)
    )
    images = torch.stack([resize(image.convert("RGB")) for image in data["image"]])
    stored = data.features["label"].names
    return Labelled(images, torch.tensor(data["label"]), names or stored, templates)


def build_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; ``<eos>`` has the highest id, as open_clip's argmax pooling expects."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in corpus for word, _ in split.pre_tokenize_str(text)})
    vocab = {word: i for i, word in enumerate(["<pad>", "<unk>", "<bos>", *words, "<eos>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[("<bos>", vocab["<bos>"]), ("<eos>", vocab["<eos>"])],
    )
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def jitter(x: Tensor, g: torch.Generator, degrees: float, zoom: float, shift: float) -> Tensor:
    """A random rotation, zoom and shift per image, ``(n, 3, h, w)``."""
    n = len(x)

    def uniform(span: float) -> Tensor:
        return (torch.rand(n, generator=g) * 2 - 1) * span

    angle, scale = uniform(math.radians(degrees)), 1 + uniform(zoom)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, -sin, uniform(shift)], 1), torch.stack([sin, cos, uniform(shift)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def recolour(x: Tensor, g: torch.Generator, share: float) -> Tensor:
    """Give a share of grey images random ink and paper colours, and all of them some noise."""
    n = len(x)
    ink, paper = torch.rand(2, n, 3, 1, 1, generator=g)
    use = (torch.rand(n, 1, 1, 1, generator=g) < share).float()
    x = x + use * ((paper + (ink - paper) * x) - x)
    level = 0.15 * torch.rand(n, 1, 1, 1, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < 0.5)
    return (x + level * torch.randn(x.shape, generator=g)).clamp(0, 1)


def normalise(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.5


def head(model: CLIP, tokenizer: Any, data: Labelled) -> Tensor:
    """Zero-shot head ``(classes, dim)``: normalise each prompt, average, normalise again."""
    prompts = [t.format(c=name) for name in data.names for t in data.templates]
    text = model.encode_text(tokenizer(prompts), normalize=True)
    return F.normalize(text.view(len(data.names), len(data.templates), -1).mean(1), dim=-1)


def accuracy(model: CLIP, weights: Tensor, data: Labelled) -> float:
    hits = 0.0
    for x, y in zip(data.images.split(500), data.labels.split(500), strict=True):
        z = model.encode_image(normalise(x), normalize=True)
        hits += ((z @ weights.T).argmax(1) == y).sum().item()
    return hits / len(data.labels)


def split_held_out(data: Labelled, task: str) -> tuple[Labelled, Labelled]:
    order = torch.randperm(len(data.labels), generator=step_generator("held-out", task))
    cut = int(len(order) * HELD_OUT)
    return data.subset(order[cut:]), data.subset(order[:cut])


def contrastive_loss(
    model: CLIP, tokenizer: Any, sources: list[Labelled], shares: list[float], size: int, step: int
) -> Tensor:
    """Image-to-caption and caption-to-image cross-entropy over the distinct captions of one batch."""
    g = step_generator("base", step)
    images, captions = [], []
    for source, share in zip(sources, shares, strict=True):
        pick = torch.randint(len(source.labels), (round(size * share),), generator=g)
        images.append(recolour(source.images[pick], g, 0.5 if source.names == sources[0].names else 0.0))
        template = source.templates[int(torch.randint(len(source.templates), (), generator=g))]
        captions += [template.format(c=source.names[int(i)]) for i in source.labels[pick]]
    x = normalise(jitter(torch.cat(images), g, degrees=12, zoom=0.15, shift=0.12))
    distinct = sorted(set(captions))
    target = torch.tensor([distinct.index(c) for c in captions])
    z = model.encode_image(x, normalize=True)
    w = model.encode_text(tokenizer(distinct), normalize=True)
    logits = model.logit_scale.exp().clamp(max=100) * z @ w.T
    matches = F.one_hot(target, len(distinct)).float()
    to_image = F.cross_entropy(logits.T, matches.T / matches.sum(0)[:, None])
    return 0.5 * (F.cross_entropy(logits, target) + to_image)


def write_model(model: CLIP, tokenizer: PreTrainedTokenizerFast, config: dict[str, Any], out: Path) -> None:
    """An open_clip model folder: config, tokenizer, float16 weights."""
    tokenizer.save_pretrained(str(out))
    text = json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS_CFG}, indent=2) + "\n"
    atomically(out / "open_clip_config.json", lambda p: p.write_text(text))
    tensors = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    atomically(out / "open_clip_model.safetensors", lambda p: save_file(tensors, p))


def train_base(
    tasks: dict[str, Labelled], out: Path, work: Path, schedule: Schedule
) -> list[dict[str, float]]:
    broad = load_split(HERE / "data" / "quickdraw300", None, SKETCH_TEMPLATES)
    everything = [broad, *tasks.values()]
    corpus = [t.format(c=c) for d in everything for t in d.templates for c in d.names]
    raw = build_tokenizer(corpus)
    config = json.loads(json.dumps(MODEL_CFG))
    config["text_cfg"]["vocab_size"] = len(raw)

    def tokenizer(texts: list[str]) -> Tensor:
        length = config["text_cfg"]["context_length"]
        padded = raw(texts, max_length=length, padding="max_length", truncation=True)
        return torch.tensor(padded.input_ids)

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = CLIP(**config)
    shown, held = [], {}
    for task, data in tasks.items():
        train, held[task] = split_held_out(data, task)
        shown.append(train.subset(torch.arange(max(len(data.names), int(LABEL_SHARE * len(train.labels))))))
    sizes = [len(s.labels) for s in shown]
    shares = [0.8, *(0.2 * n / sum(sizes) for n in sizes)]

    def measure() -> dict[str, float]:
        found = {t: accuracy(model, head(model, tokenizer, d), d) for t, d in held.items()}
        return {**found, "average": sum(found.values()) / len(found)}

    def loss_at(step: int) -> Tensor:
        return contrastive_loss(model, tokenizer, [broad, *shown], shares, schedule.batch, step)

    log = optimise("base", model, list(model.parameters()), schedule, loss_at, work / "base.pt", measure)
    write_model(model, raw, config, out / "base")
    return log


def train_expert(
    task: str, data: Labelled, out: Path, work: Path, schedule: Schedule
) -> list[dict[str, float]]:
    folder = f"local-dir:{out / 'base'}"
    model: Any = open_clip.create_model(folder, precision="fp32")
    tokenizer = open_clip.get_tokenizer(folder)
    train, held = split_held_out(data, task)
    with torch.no_grad():
        weights = model.logit_scale.exp() * head(model, tokenizer, data)
    trained = [p for name, p in model.visual.named_parameters() if name != "proj"]
    order = [
        i
        for _, i in zip(range(schedule.steps), batches(len(train.labels), schedule.batch, task), strict=False)
    ]

    def loss_at(step: int) -> Tensor:
        x = jitter(train.images[order[step]], step_generator(task, "aug", step), 8, 0.1, 0.08)
        z = model.encode_image(normalise(x), normalize=True)
        return F.cross_entropy(z @ weights.T, train.labels[order[step]])

    def measure() -> dict[str, float]:
        return {"held_out": accuracy(model, weights, held)}

    log = optimise(task, model, trained, schedule, loss_at, work / f"{task}.pt", measure)
    state = model.visual.state_dict()
    tensors = {k: v.half().contiguous() for k, v in state.items() if k != "proj"}
    atomically(out / "experts" / task / "model.safetensors", lambda p: save_file(tensors, p))
    return log


def main() -> None:
    options = Options.parse(__doc__, HERE / "models", Path(".cache/train-micro"))
    suite = json.loads(SUITE_FILE.read_text())
    tasks = {
        t["task"]: load_split(HERE / "data" / t["task"], t["class_names"], t["templates"])
        for t in suite["tasks"]
    }
    if options.wants("base"):
        options.note("base", train_base(tasks, options.out, options.work, BASE.scaled(options.scale)))
    for task, data in tasks.items():
        if options.wants(task):
            options.note(
                task, train_expert(task, data, options.out, options.work, EXPERT.scaled(options.scale))
            )


if __name__ == "__main__":
    main()
