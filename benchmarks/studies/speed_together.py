"""Ten models evaluated together over ten times one alone: ``python -m benchmarks.studies.speed_together``.

Both from an empty cache of decoded images, on photographs (JPEG, 500 x 375) for a tower that is cheap beside
their decoding, as a large one is on a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.images.decoded import decoded
from benchmarks.images.predict import predictions
from benchmarks.images.preprocess import Preprocess, of_transformers
from benchmarks.studies.synthetic import write_pictures
from benchmarks.workbench.machine import Machine
from epmq.models.tower import Tower
from epmq.models.transformers_vision import tower as vision_tower

GOAL = 0.35


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.speed_together", description=__doc__)
    parser.add_argument("--pictures", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "data", 1, options.pictures)
        CLIPImageProcessor().save_pretrained(folder)
        preprocess = of_transformers(folder, "slow")
        towers = [small_tower(seed) for seed in range(10)]
        ratios = []
        for repeat in tqdm(range(options.repeats), leave=False):
            ten = seconds(folder, preprocess, towers, f"ten-{repeat}")
            one = sum(seconds(folder, preprocess, [t], f"one-{repeat}-{i}") for i, t in enumerate(towers))
            ratios.append(ten / one)
            print(f"ten together {ten:.2f} s, ten times one {one:.2f} s, ratio {ten / one:.3f}")
    return int(sorted(ratios)[len(ratios) // 2] > GOAL)


def small_tower(seed: int) -> Tower:
    """Two blocks of width 128 on 224 x 224 pixels in patches of 32."""
    shape = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape, patch_size=32, projection_dim=64))
    return vision_tower(model)


def seconds(folder: Path, preprocess: Preprocess, towers: list[Tower], cache: str) -> float:
    """From files to predictions, with a cache of its own."""
    head: Tensor = torch.eye(64)[:3]
    data = load_dataset(str(folder / "data"), split="test")
    (folder / cache).mkdir()
    start = time.perf_counter()
    images = decoded(data, ("image", "label"), preprocess, folder / cache, identity={}, what="pictures")
    predictions(towers, head, images, preprocess, Machine())
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
