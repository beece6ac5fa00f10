"""``epmq pin`` of a text suite against the replica, and what pinning and opening its models refuse."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.sources import lock as locks
from benchmarks.sources.lock import Lock
from tests.fixtures.pinned_replica import Replica
from tests.hub import text_data
from tests.hub.content import build_text, shared
from tests.hub.server import Hub
from tests.hub.suites import rehearsal
from tests.hub.text_data import REPOSITORY, TABLES
from tests.hub.text_models import BASE, STEM

TEXT_BASE_LOCKED = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
}
# Every case changes a copy of the suite; says what pinning and then opening the models complained about.
REFUSALS = """
from benchmarks.sources import pin
from benchmarks.workbench.machine import Machine
from benchmarks.suites.load import TextSuite
from benchmarks.text.workbench import TextWorkbench
from benchmarks.workbench.base import Setting

def complaint(edit, opened=False):
    content = suite.model_dump()
    content["tasks"] = content["tasks"][:2]
    edit(content, content["tasks"][0], content["tasks"][0]["dataset"])
    changed = TextSuite.model_validate(content)
    try:
        found = pin.pin(changed, Path(path.parent, "refused.json"))
        if opened:
            TextWorkbench(changed, Setting(Machine.choose("cpu", "float32"), found, pinned=True))
    except UserError as error:
        return str(error)
    finally:
        Path(path.parent, "refused.json.partial").unlink(missing_ok=True)

adapters = pin.pin(suites.load(str(Path(path.parent, "adapters.json"))), Path(path.parent, "adapters.lock"))
print(json.dumps({
    "adapters": {name: sorted(repo.files) for name, repo in adapters.models.items()},
    "column": complaint(lambda s, t, d: d.update(columns=["text"])),
    "field": complaint(lambda s, t, d: t.update(prompt="glue8/qnli.yaml"), opened=True),
    "test split": complaint(lambda s, t, d: d.update(eval_split="test", eval_size=8)),
    "classes": complaint(lambda s, t, d: t.update(prompt="glue8/mrpc.yaml",
        dataset={**d, "config": "stsb", "columns": ["sentence1", "sentence2"]})),
    "samples": complaint(lambda s, t, d: d.update(eval_size=1043)),
    "config": complaint(lambda s, t, d: d.update(config="colla")),
    "split": complaint(lambda s, t, d: d.update(eval_split="dev")),
    "expert": complaint(lambda s, t, d: t.update(expert="tanganke/flan-t5-base_glue-colla")),
    "whole": complaint(lambda s, t, d: None, opened=True),
    "decoder-only": complaint(lambda s, t, d: s.update(base="replica/tiny-llama"), opened=True),
    "other architecture": complaint(lambda s, t, d: t.update(expert="replica/tiny-llama-a"), opened=True),
    "other adapter": complaint(lambda s, t, d: t.update(expert="replica/tiny-llama-b"), opened=True),
    "tokenizer": complaint(lambda s, t, d: s.update(base="replica/flan-t5-large-vocabulary"), opened=True),
    "other width": complaint(lambda s, t, d: t.update(expert="replica/flan-t5-narrow"), opened=True),
    "not trained": complaint(lambda s, t, d: t.update(expert="google/flan-t5-base"), opened=True),
}))
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_text(shared(tmp_path_factory))


@dataclass(frozen=True)
class Pinned:
    """A replica on which ``epmq pin`` ran, and the lock that it wrote."""

    replica: Replica
    lock: Lock


@pytest.fixture(scope="module")
def glue(content: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pinned]:
    with Hub(content) as hub:
        replica = Replica(hub, tmp_path_factory.mktemp("glue"))
        replica.suite_file.write_text(json.dumps(rehearsal("flan-t5-base-glue8")), "utf-8")
        done = replica.pin()
        assert done.returncode == 0, done.stderr
        assert f"9 models and 8 data sets are pinned in {replica.lock}" in done.stderr
        yield Pinned(replica, locks.read(replica.lock))


def test_a_lock_has_every_models_commit_and_the_files_that_a_run_reads(glue: Pinned) -> None:
    hub, models = glue.replica.hub, glue.lock.models
    assert list(models) == [BASE, *(f"{STEM}{task}" for task in TABLES)]
    for name, repo in models.items():
        assert repo.revision == hub.head(f"models/{name}")
        assert set(repo.files) == (TEXT_BASE_LOCKED if name == BASE else {"config.json", "model.safetensors"})
        for path, file in repo.files.items():
            served = hub.read(f"models/{name}", path)
            assert (file.sha256, file.size) == (hashlib.sha256(served).hexdigest(), len(served))


def test_a_lock_counts_the_labels_of_every_configuration(glue: Pinned) -> None:
    assert set(glue.lock.datasets) == set(TABLES)
    for name, entry in glue.lock.datasets.items():
        assert (entry.id, entry.config, entry.format) == (REPOSITORY, name, "parquet")
        assert entry.revision == glue.replica.hub.head(f"datasets/{REPOSITORY}")
        used = {"train", "validation_matched" if name == "mnli" else "validation"}
        assert set(entry.splits) == used
        for split, counted in entry.splits.items():
            labels = Counter(round(row["label"]) for row in text_data.rows(name, split))
            assert counted.labels == dict(sorted(labels.items()))
            assert counted.samples == labels.total()
            assert counted.files == [f"{name}/{split}-00000-of-00001.parquet"]


def test_pinning_downloads_neither_weights_nor_test_splits(glue: Pinned) -> None:
    got = glue.replica.hub.downloaded()
    assert f"{REPOSITORY}/mnli/validation_matched-00000-of-00001.parquet" in got
    assert not [file for file in got if file.endswith((".safetensors", ".bin", ".h5", "spiece.model"))]
    assert not [file for file in got if "/test" in file or "mismatched" in file]


def write_odd_models(content: Path, models: Path) -> None:
    """A base whose tokenizer has more tokens than its embedding has rows, and an expert half as wide."""
    from safetensors.torch import load_file, save_file

    for name, of in (("flan-t5-large-vocabulary", BASE), ("flan-t5-narrow", f"{STEM}cola")):
        home = models / "replica" / name
        shutil.copytree(content / "models" / of, home)
        weights = load_file(home / "model.safetensors")
        if of == BASE:
            cut = {n: w[:400].clone() for n, w in weights.items() if n in ("shared.weight", "lm_head.weight")}
            config = json.loads((home / "config.json").read_bytes())
            (home / "config.json").write_text(json.dumps({**config, "vocab_size": 400}), "utf-8")
        else:
            cut = {n: w[..., : w.shape[-1] // 2].clone() for n, w in weights.items()}
        save_file({**weights, **cut}, home / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def said(content: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("refusals")
    write_odd_models(content, folder / "content" / "models")
    with Hub(content, folder / "content") as hub:
        replica = Replica(hub, folder)
        replica.suite_file.write_text(json.dumps(rehearsal("flan-t5-base-glue8")), "utf-8")
        (folder / "adapters.json").write_text(json.dumps(rehearsal("flan-t5-base-glue8-lora16")), "utf-8")
        yield hub, replica.script(REFUSALS)


def test_adapters_are_pinned_by_their_own_two_files(said: tuple[Hub, dict[str, Any]]) -> None:
    experts = dict(said[1]["adapters"])
    assert set(experts.pop(BASE)) == TEXT_BASE_LOCKED
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert experts == {f"{STEM}{task}_lora-16": files for task in TABLES}


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ("column", "data set cola (nyu-mll/glue, train) has no column 'text', only ['sentence', "),
        ("field", "data set cola (nyu-mll/glue, train) has no column 'question', which the task glue8"),
        ("test split", "data set cola (nyu-mll/glue, test): label -1 is none of the task glue8_cola, 0..1;"),
        ("classes", "data set cola (nyu-mll/glue, train): label 0.128"),
        ("samples", "data set cola (nyu-mll/glue, validation) has 24 samples, the suite says 1043; it is"),
        ("config", "data set nyu-mll/glue: BuilderConfig 'colla' not found. Available: ['cola', 'mnli',"),
        ("split", "data set nyu-mll/glue has no split 'dev' at commit {glue}, only train, validation, test;"),
        ("expert", "model tanganke/flan-t5-base_glue-colla cannot be downloaded ("),
    ],
)
def test_pinning_refuses(said: tuple[Hub, dict[str, Any]], case: str, complaint: str) -> None:
    hub, found = said
    assert found[case].startswith(complaint.format(glue=hub.head(f"datasets/{REPOSITORY}")[:12]))
    assert "correct" in found[case] or "take a split" in found[case] or "another version" in found[case]


@pytest.mark.parametrize(
    ("case", "complaint"),
    [
        ("decoder-only", "config.json: describes a decoder-only model (llama), the suite "),
        ("other architecture", ".k.weight' is missing (51 in all); give an expert fine-tuned from this base"),
        ("other adapter", ": adapts 'model.layers.0.self_attn.q_proj.weight', which the base lacks; give"),
        ("tokenizer", "tokens, the model's embedding 400 rows; give the model its own tokenizer"),
        ("other width", "), the base's is ("),
        ("not trained", ": every tensor equals the base's; give an expert fine-tuned from this base"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(
    said: tuple[Hub, dict[str, Any]], case: str, complaint: str
) -> None:
    assert complaint in said[1][case]
    assert "\n" not in said[1][case]


def test_models_that_fit_are_opened(said: tuple[Hub, dict[str, Any]]) -> None:
    assert said[1]["whole"] is None, "so that what is refused is refused for its fault"
