"""``epmq quantise`` from hub ids, on the local replica."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.hub.content import build_text, shared
from tests.hub.server import Hub
from tests.hub.text_models import LLAMA

ROOT = Path(__file__).parents[2]


def test_models_of_the_hub_become_a_checkpoint_that_names_their_commits(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A tiny Llama, an expert in bfloat16 and a LoRA expert, as ids and, afterwards, at the commits found."""
    samples = tmp_path / "prompts.txt"
    samples.write_text("".join(f"Is this number {i} good ?\n" for i in range(12)))
    asked = ["--expert", f"one={LLAMA}-a", "--expert", f"two={LLAMA}-b"]
    asked += [
        "--samples",
        f"one={samples}",
        "--samples",
        f"two={samples}",
        "--count",
        "8",
        "--method",
        "gptq",
    ]
    with Hub(build_text(shared(tmp_path_factory))) as hub:
        online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
        env = {**hub.env(tmp_path / "home"), **online, "EPMQ_CACHE": str(tmp_path / "epmq")}

        def quantised(base: str, to: str) -> subprocess.CompletedProcess[str]:
            words = ["quantise", "--base", base, *asked, "--format", "dense", "--to", str(tmp_path / to)]
            command = [sys.executable, "-m", "benchmarks.cli.main", *words]
            return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)

        done = quantised(LLAMA, "out")
        assert done.returncode == 0, done.stderr
        assert f"{LLAMA}-b/adapter_model.safetensors" in hub.downloaded()
        refused = quantised(f"{LLAMA}@{'0' * 40}", "refused")
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "refused").exists()
    about = json.dumps(json.loads((tmp_path / "out" / "epmq.json").read_text()))
    card = (tmp_path / "out" / "README.md").read_text()
    for name in (LLAMA, f"{LLAMA}-a", f"{LLAMA}-b"):
        assert name in about + card
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
