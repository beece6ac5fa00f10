"""Tiny models, packed and dense, for ``nox -s formats``: ``python -m tests.formats.made DIR``.

Of each case there are two folders, CASE (packed) and CASE.dense (the same model dequantised), and CASE.json
says what to load and feed it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import epmq
from tests.fixtures import tiny_clip, tiny_lm, tiny_t5
from tests.fixtures.tiny_suite import make_visual

BITS = (2, 3, 4, 8)
GROUP = 8


def models() -> Iterator[tuple[str, Any, Any, Any]]:
    """Name, model, experts and calibration inputs."""
    g = torch.Generator().manual_seed(0)
    images = {task: torch.randn(16, 3, 16, 16, generator=g) for task in ("a", "b")}
    clip = tiny_clip.model()
    state = tiny_clip.tensors(clip)
    yield "CLIP", clip, {t: tiny_clip.expert(state, i) for i, t in enumerate(images)}, images
    visual = make_visual()
    yield "open_clip", visual.visual, visual.experts, visual.inputs
    t5 = tiny_t5.tiny_t5()
    yield (
        "T5",
        t5,
        tiny_t5.experts(t5, list(images)),
        {t: [tiny_t5.batch(i, 6)] for i, t in enumerate(images)},
    )
    # compressed-tensors 0.20.0 cannot unpack zero points of 4 bits of a layer with 8 rows or fewer
    llama = tiny_lm.tiny_lm("llama", hidden_size=32)
    batches = {t: [tiny_lm.batch(i, 6)] for i, t in enumerate(images)}
    yield "Llama", llama, tiny_lm.experts(llama, list(images)), batches


def write(folder: Path) -> None:
    """Write every case."""
    folder.mkdir(parents=True)
    for (name, model, experts, inputs), bits, symmetric, group in itertools.product(
        models(), BITS, (True, False), (None, GROUP)
    ):
        before = {key: x.clone() for key, x in model.state_dict().items()}
        spec = epmq.QuantSpec(bits, group, symmetric=symmetric)
        report = epmq.quantise(model, experts, inputs, "rtn", spec)
        case = (
            f"{name}-{'symmetric' if symmetric else 'asymmetric'}-{'groups' if group else 'channel'}-{bits}"
        )
        forms: dict[Any, str] = {"compressed-tensors": case, "dense": f"{case}.dense"}
        for form, to in forms.items():
            epmq.write_checkpoint(folder / to, model=model, weights=report.weights, format=form)
        architecture = json.loads((folder / case / "config.json").read_bytes())["architectures"][0]
        told = {"model": name, "architecture": architecture, "symmetric": symmetric}
        told |= {"groups": group is not None, "bits": bits}
        (folder / f"{case}.json").write_text(json.dumps(told))
        model.load_state_dict(before)
        print(case, file=sys.stderr)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
