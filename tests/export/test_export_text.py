"""Language models leave a results folder, answer the same, and answer the same through lm-eval alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cli.main import main
from results.store.folder import RunFolder
from tests.fixtures.tiny_any_lm import PROMPTS, write_lm_suite
from tests.fixtures.tiny_text import TinyText

ROOT = Path(__file__).parents[2]


def exported(run: Path, cell: str, to: Path, form: str) -> dict[str, Any]:
    """The note of an export, whose folder it is."""
    assert main(["export", str(run), "--cell", cell, "--to", str(to), "--format", form]) == 0
    found: dict[str, Any] = json.loads((to / "epmq.json").read_bytes())
    return found


def test_an_encoder_decoder_answers_as_its_record(tiny_text: TinyText, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    asked = ["--method", "gptq", "--target", "merged", "--controls", "--samples", "8"]
    assert main(["run", str(tiny_text.file), "--out", str(run), *asked]) == 0
    exported(run, "gptq", tmp_path / "model", "compressed-tensors")
    capsys.readouterr()
    command = ["evaluate", str(tiny_text.file), "--model", str(tmp_path / "model")]
    assert main(command) == 0
    assert "the same answers on every sample as its record" in capsys.readouterr().out
    assert main([*command, "--record", str(run)]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        assert (tmp_path / "model" / name).is_file()


def test_lm_eval_alone_comes_to_the_records_numbers(tmp_path: Path) -> None:
    made = write_lm_suite(tmp_path)
    run, model = tmp_path / "run", tmp_path / "model"
    asked = ["--method", "gptq", "--target", "merged", "--controls", "--samples", "24"]
    assert main(["run", *made.arguments, *asked, "--out", str(run)]) == 0
    exported(run, "gptq", model, "dense")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--batch_size", "16"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--tasks", *PROMPTS]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "said"), "--device", "cpu"]
    subprocess.run(
        command,
        cwd=tmp_path,  # task files name their data from there
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        timeout=600,
    )
    (file,) = (tmp_path / "said").rglob("results_*.json")
    found = json.loads(file.read_bytes())["results"]
    (record,) = RunFolder.open(run).records()
    for task, result in record.tasks.items():
        assert found[task]["exact_label,none"] == result.value
    assert 0 < record.average < 1
