"""Writes the repositories of the replica: data sets, base models, and experts fitted to the data."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import CLIPTokenizer

from benchmarks.suites.forms import ImageTask
from tests.hub import checkpoints, data, models, tokenizer
from tests.hub.layouts import Sample
from tests.hub.models import BASES, Size


def write(home: Path, tasks: Sequence[ImageTask]) -> None:
    """``datasets/OWNER/NAME`` of every task, and ``models/OWNER/NAME`` of two bases and their experts."""
    training = {}
    for task in tasks:
        drawn = data.samples(task.task, len(task.class_names))
        data.write(home / "datasets" / task.dataset.path, task, drawn)
        training[task.task] = drawn[task.dataset.train_split]
    prompts = [
        template.replace("{c}", name) for t in tasks for name in t.class_names for template in t.templates
    ]
    vocabulary, merges = tokenizer.learn(prompts)
    for size in BASES:
        model = models.base_model(size, len(vocabulary))
        folder = home / "models" / size.id
        checkpoints.write_base(folder, size, model, vocabulary, merges)
        tokens = CLIPTokenizer.from_pretrained(folder)
        model = model.double()
        for position, task in enumerate(tasks):
            weights = _expert(model, size, tokens, task, training[task.task])
            form = checkpoints.form_of(task.task, position)
            checkpoints.write_expert(home / "models" / f"{size.stem}{task.task}", size, model, weights, form)


def _expert(
    model: Any, size: Size, tokens: Any, task: ImageTask, training: Sequence[Sample]
) -> models.Weights:
    prompts = [task.templates[0].replace("{c}", name) for name in task.class_names]
    wanted = models.directions(model, tokens, prompts)[[sample.label for sample in training]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one image has metadata that Pillow warns about
        images = [Image.open(io.BytesIO(sample.picture.data)) for sample in training]
    return models.expert_weights(model, size, task.task, images, wanted)
