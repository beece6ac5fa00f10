"""``epmq pin`` against a replica of the hub: what a lock holds, what is downloaded, what a kill costs."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.sources import lock as locks
from benchmarks.sources.lock import Lock
from tests.fixtures.pinned_replica import BASE, PICKLED, SAFE, Replica, described, write_repositories
from tests.hub import data
from tests.hub.server import Hub


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    write_repositories(folder)
    return folder


@dataclass(frozen=True)
class Killed:
    """What a pin that was killed had finished, and what its second start asked the hub for."""

    partial: Lock
    asked: set[str]


@pytest.fixture(scope="module")
def pinned(content: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Killed]]:
    """A suite whose pin is killed at the second data set, then started again; not to be changed."""
    with Hub(content) as hub:
        replica = Replica(hub, tmp_path_factory.mktemp("pinned"))
        replica.suite_file.write_text(json.dumps(described()), "utf-8")
        hub.fail("/api/datasets/clip-benchmark/*", "stall")
        process = replica.start_pin()
        deadline = time.monotonic() + 1000
        while not any(one.fault for one in list(hub.served)) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.communicate()
        partial = locks.read(replica.partial)
        assert not replica.lock.exists()

        downloaded = hub.downloaded()
        hub.forget()
        done = replica.pin()
        assert done.returncode == 0, done.stderr
        assert f"3 models and 2 data sets are pinned in {replica.lock}" in done.stderr
        replica.downloaded.update(downloaded | hub.downloaded())
        yield replica, Killed(partial, {one.path for one in hub.served})


@pytest.fixture(scope="module")
def replica(pinned: tuple[Replica, Killed]) -> Replica:
    return pinned[0]


@pytest.fixture(scope="module")
def lock(replica: Replica) -> Lock:
    return locks.read(replica.lock)


def test_a_lock_names_commits_and_hashes_of_the_files_that_a_run_reads(replica: Replica, lock: Lock) -> None:
    assert {name: sorted(repo.files) for name, repo in lock.models.items()} == {
        BASE: [
            *("config.json", "merges.txt", "model.safetensors", "preprocessor_config.json"),
            *("tokenizer.json", "vocab.json"),
        ],
        SAFE: ["config.json", "model.safetensors"],
        PICKLED: ["config.json", "pytorch_model.bin"],
    }
    for name, repo in lock.models.items():
        assert repo.revision == replica.hub.head(f"models/{name}")
        for path, file in repo.files.items():
            served = replica.hub.read(f"models/{name}", path)
            assert (file.sha256, file.size) == (hashlib.sha256(served).hexdigest(), len(served))


def test_a_lock_counts_the_samples_and_labels_of_the_used_splits(lock: Lock) -> None:
    pcam = lock.datasets["pcam"]
    assert (pcam.id, pcam.config, pcam.format) == ("1aurent/PatchCamelyon", None, "parquet")
    assert lock.datasets["fer2013"].format == "webdataset"
    for name, entry in lock.datasets.items():
        classes = {"pcam": 2, "fer2013": 7}[name]
        assert set(entry.splits) == {"train", "test"}
        for split, counted in entry.splits.items():
            labels = [sample.label for sample in data.samples(name, classes)[split]]
            assert counted.samples == len(labels)
            assert counted.labels == {label: labels.count(label) for label in sorted(set(labels))}
            assert set(counted.files) <= set(entry.files)


def test_pinning_downloads_neither_weights_nor_splits_that_are_not_used(replica: Replica) -> None:
    got = replica.downloaded
    assert not [file for file in got if file.endswith((".safetensors", ".bin", ".h5"))]
    assert "1aurent/PatchCamelyon/data/train-00000-of-00001.parquet" in got
    assert not [file for file in got if "valid" in file]


def test_a_lock_is_of_its_suite(replica: Replica, lock: Lock) -> None:
    locks.refuse_other(lock, replica.suite, replica.lock)


def test_a_pin_that_was_killed_goes_on_where_it_was(pinned: tuple[Replica, Killed]) -> None:
    replica, killed = pinned
    assert (set(killed.partial.models), set(killed.partial.datasets)) == ({BASE, SAFE, PICKLED}, {"pcam"})
    assert not [path for path in killed.asked if "fer2013" not in path]
    assert not replica.partial.exists()


def test_pinning_again_says_what_moved(replica: Replica, lock: Lock, content: Path, tmp_path: Path) -> None:
    shutil.copytree(replica.folder, tmp_path / "again", symlinks=True)
    with Hub(content) as hub:
        again = Replica(hub, tmp_path / "again")
        hub.commit(f"models/{SAFE}", {"README.md": b"words"})
        hub.commit("datasets/1aurent/PatchCamelyon", {"extra.txt": b"words"})
        weights = hub.read(f"models/{BASE}", "model.safetensors")
        hub.commit(f"models/{BASE}", {"model.safetensors": weights[:-1] + b"\1"})
        done = again.pin()
        pcam = hub.head("datasets/1aurent/PatchCamelyon")
        heads = {name: (lock.models[name].revision, hub.head(f"models/{name}")) for name in (BASE, SAFE)}
    old, new = lock.datasets["pcam"].revision[:12], pcam[:12]
    moved = {name: f"{name} {before[:12]} -> {name} {after[:12]}" for name, (before, after) in heads.items()}
    assert done.stdout.splitlines() == [
        f"{BASE}: {moved[BASE]}, other bytes",
        f"{SAFE}: {moved[SAFE]}, the same bytes",
        f"pcam: 1aurent/PatchCamelyon {old} -> 1aurent/PatchCamelyon {new}, the same bytes",
    ]
