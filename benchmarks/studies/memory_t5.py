"""Peak resident memory of a run on FLAN-T5-base: ``python -m benchmarks.studies.memory_t5 --folder DIR``.

A model of the full shape (247,577,856 numbers, ``lm_head`` untied) with random weights, 8 synthetic experts
on disk, task arithmetic and E-PMQ over all layers on a few samples of 64 tokens a task, on the CPU, by ``epmq
run`` in a process of its own, whose peak the operating system reports. The base is stored as float32. So are
experts with ``--stored float32``, as the published ones are (9 GB of disk); else they are bfloat16 (5 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

from benchmarks.studies.synthetic import NOISE
from epmq.checkpoints.lazy import LazyCheckpoint

LIMIT = 6 * 2**30  # bytes
PARAMETERS = 247_577_856
SHAPE: dict[str, Any] = {  # config.json of google/flan-t5-base
    "vocab_size": 32128,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 12,
    "num_decoder_layers": 12,
    "num_heads": 12,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
}
STORED = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WORDS = ["yes", "no", *(f"w{i}" for i in range(1000))]
TOKENS = 64  # of a prompt, with the end
PROMPT = "glue8/sst2.yaml"
OPTIONS = "--merge task-arithmetic --method epmq --target merged --bits 4 --controls --device cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when the limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.memory_t5", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where models are written, and kept")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="calibration samples a task")
    parser.add_argument("--layers", default="*", help="pattern of the layers to quantise")
    parser.add_argument("--stored", default="bfloat16", choices=STORED, help="type of the experts' files")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    suite = write_suite(folder, options.experts, options.samples, options.stored)
    out = folder / f"run-{time.time_ns()}"
    given = [*OPTIONS.split(), "--samples", str(options.samples), "--layers", options.layers]
    command = [sys.executable, "-m", "benchmarks.cli.main", "run", str(suite), *given, "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "EPMQ_CACHE": str(folder / "cache")})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("the run failed")
    peak = usage.ru_maxrss * 1024
    seconds = time.perf_counter() - start
    print(f"{options.experts} experts in {options.stored}, {options.samples} samples a task, {seconds:.0f} s")
    print(f"peak {peak / 2**30:.2f} GiB; limit {LIMIT / 2**30:.0f} GiB")
    return int(peak > LIMIT)


def write_base(folder: Path) -> None:
    """A random FLAN-T5-base in float32, in the layout of the published file, and a tokenizer of words."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(**SHAPE))
        head = torch.randn(SHAPE["vocab_size"], SHAPE["d_model"])
    tensors = {name: weight.detach() for name, weight in model.named_parameters()} | {"lm_head.weight": head}
    assert sum(tensor.numel() for tensor in tensors.values()) == PARAMETERS
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0), *((f"▁{w}", -5.0) for w in WORDS)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    _save(tensors, folder)


def write_expert(base: Path, folder: Path, seed: int, stored: str) -> None:
    """The base with noise."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    origin, generator = LazyCheckpoint(base), torch.Generator().manual_seed(seed)
    tensors = {}
    for name in origin:
        noise = NOISE * torch.randn(origin[name].shape, generator=generator)
        tensors[name] = (origin[name] + noise).to(STORED[stored])
    _save(tensors, folder)


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(tensors, folder / "partial.safetensors", {"format": "pt"})
    (folder / "partial.safetensors").replace(folder / "model.safetensors")


def write_texts(folder: Path, train: int) -> None:
    """Sentences of one word after another, long enough that prompts are cut to `TOKENS`."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", 2)):
        texts = [" ".join(WORDS[2 + (7 * i + j) % 1000] for j in range(TOKENS)) for i in range(count)]
        rows = Dataset.from_dict({"sentence": texts, "label": [i % 2 for i in range(count)]})
        rows.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


def write_suite(folder: Path, experts: int, samples: int, stored: str) -> Path:
    """Models, data and the suite file that names them; returns the suite file."""
    base, data = folder / "base", folder / f"texts-{samples}"
    write_base(base)
    homes = [folder / f"expert-{stored}-{number}" for number in range(experts)]
    for number, home in enumerate(tqdm(homes, desc="writing experts", leave=False)):
        write_expert(base / "model.safetensors", home, number, stored)
    write_texts(data, samples)
    dataset = {
        "path": str(data),
        "config": None,
        "revision": None,
        "train_split": "train",
        "eval_split": "test",
        "columns": ["sentence"],
        "label_column": "label",
        "train_size": samples,
        "eval_size": 2,
        "licence": "made up",
    }
    defaults = {"merge": ["task-arithmetic"], "method": ["epmq"], "target": ["merged"], "bits": [4]}
    suite = {
        "name": f"synthetic-t5-{experts}",
        "version": 1,
        "kind": "text",
        "description": "Random weights of full size.",
        "library": "transformers",
        "architecture": "encoder-decoder",
        "max_length": TOKENS,
        "rehearsal": True,
        "base": str(base),
        "metric": "accuracy",
        "comparisons": {"default": {**defaults, "samples": samples, "controls": []}},
        "checkpoints": {},
        "tasks": [
            {"task": f"task-{number}", "dataset": dataset, "expert": str(home), "prompt": PROMPT}
            for number, home in enumerate(homes)
        ],
    }
    file = folder / f"{suite['name']}-{samples}-{stored}.json"
    file.write_text(json.dumps(suite, indent=1), encoding="utf-8")
    return file


if __name__ == "__main__":
    sys.exit(main())
