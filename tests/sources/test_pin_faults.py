"""What a run does when the hub errs: passing faults are outlasted, lasting ones end in one clear line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.pinned_replica import BASE, PICKLED, SAFE, Replica, described, lock_of, write_repositories
from tests.hub.server import Hub

PCAM, FER = "1aurent/PatchCamelyon", "clip-benchmark/wds_fer2013"
# Fetches everything; prints, per repository, the files' SHA-256 or the complaint, and the waits between.
FETCH = """
found, sources = {}, Sources(suite, lock.read(path))
for name in lock.models_of(suite):
    try:
        got = sources.model(name, WEIGHTS)
        found[name] = {file: lock.FileLock.of(got.folder / file).sha256 for file in got.files}
    except UserError as error:
        found[name] = str(error)
for task in suite.tasks:
    try:
        files = sources.arguments(task, 'test')['data_files']['test']
        found[task.dataset.path] = {Path(file).name: lock.FileLock.of(Path(file)).sha256 for file in files}
    except UserError as error:
        found[task.dataset.path] = str(error)
print(json.dumps([found, waits]))
"""


def new_replica(hub: Hub, folder: Path) -> Replica:
    replica = Replica(hub, folder)
    replica.suite_file.write_text(json.dumps(described()), "utf-8")
    replica.lock.write_text(lock_of(hub, replica.suite).model_dump_json())
    return replica


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content")
    write_repositories(folder)
    return folder


def served(replica: Replica) -> dict[str, dict[str, str]]:
    """What ``FETCH`` prints when nothing goes wrong."""
    names = {BASE: "models", SAFE: "models", PICKLED: "models", PCAM: "datasets", FER: "datasets"}
    locked = lock_of(replica.hub, replica.suite)
    repos = [*locked.models.values(), *locked.datasets.values()]
    assert {repo.id for repo in repos} == set(names)
    test = {repo.id: [f for f in repo.files if names[repo.id] == "models" or "test" in f] for repo in repos}
    return {
        name: {
            Path(file).name: hashlib.sha256(replica.hub.read(f"{kind}/{name}", file)).hexdigest()
            for file in test[name]
        }
        for name, kind in names.items()
    }


def test_faults_that_pass_are_outlasted(content: Path, tmp_path: Path) -> None:
    with Hub(content) as hub:
        replica = new_replica(hub, tmp_path)
        hub.fail(f"/{BASE}/resolve/*/tokenizer.json", "500", times=2)
        hub.fail(f"/{BASE}/resolve/*/config.json", "500", times=2, method="GET")
        hub.fail(f"/{BASE}/resolve/*/vocab.json", "429", times=2)
        hub.fail(f"/{BASE}/resolve/*/merges.txt", "stall", times=1)
        hub.fail(f"/{SAFE}/resolve/*/model.safetensors", "cut", times=1)
        hub.fail(f"/{PICKLED}/resolve/*/pytorch_model.bin", "corrupt", times=1)
        hub.fail(f"/datasets/{PCAM}/resolve/*/test-*", "cut", times=2)
        found, _ = replica.script(FETCH, timeout=4)
        faults = {(one.fault, one.file or one.path) for one in hub.served if one.fault}
        assert {kind for kind, _ in faults} == {"500", "429", "stall", "cut", "corrupt"}
        assert found == served(replica)


@pytest.fixture(scope="module")
def failed(content: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Any]]:
    """A replica at which every repository has a fault that stays, and what a client said of them."""
    with Hub(content) as hub:
        replica = new_replica(hub, tmp_path_factory.mktemp("failed"))
        hub.replace(f"models/{BASE}", "config.json", b"[]")
        hub.fail(f"/{SAFE}/resolve/*/model.safetensors", "corrupt")
        hub.fail(f"/{PICKLED}/resolve/*/pytorch_model.bin", "500")
        hub.fail(f"/datasets/{PCAM}/resolve/*/test-*", "429")
        hub.fail(f"/datasets/{FER}/resolve/*/test/0.tar", "wrong-hash")
        yield replica, replica.script(FETCH)


def test_a_file_that_changed_under_its_commit_is_refused(failed: tuple[Replica, Any]) -> None:
    replica, (found, _) = failed
    commit = replica.hub.head(f"models/{BASE}")[:12]
    now, pinned = (hashlib.sha256(content).hexdigest()[:12] for content in (b"[]", b"{}"))
    assert found[BASE] == (
        f"model {BASE}: file config.json of commit {commit} has SHA-256 {now}..., expected {pinned}...: "
        "the hub serves other bytes than were pinned; try later, or run 'epmq pin' again and compare the "
        "locks"
    )


def test_bytes_that_stay_wrong_are_refused(failed: tuple[Replica, Any]) -> None:
    _, (found, _) = failed
    assert f"model {SAFE}: file model.safetensors of commit " in found[SAFE]
    assert "the hub serves other bytes than were pinned" in found[SAFE]


@pytest.mark.parametrize(
    ("repo", "what"),
    [
        (PICKLED, f"model {PICKLED}: file pytorch_model.bin"),
        (PCAM, f"dataset {PCAM}: file data/test-00000-of"),
    ],
)
def test_a_hub_that_keeps_failing_is_given_up(failed: tuple[Replica, Any], repo: str, what: str) -> None:
    _, (found, waits) = failed
    assert found[repo].startswith(what)
    assert "cannot be downloaded (" in found[repo]
    assert found[repo].endswith("; run the same command again to go on")
    assert 0 < sum(waits) < 300, "tries are few, with waits between them"


def test_a_wrong_etag_does_no_harm(failed: tuple[Replica, Any]) -> None:
    replica, (found, _) = failed
    assert found[FER] == served(replica)[FER]


def test_the_next_run_gets_what_was_missing_and_nothing_else(failed: tuple[Replica, Any]) -> None:
    replica, _ = failed
    hub = replica.hub
    hub.replace(f"models/{BASE}", "config.json", b"{}")
    hub.forget()
    found, waits = replica.script(FETCH)
    assert (found, waits) == (served(replica), [])
    assert {
        f"{BASE}/config.json",
        f"{SAFE}/model.safetensors",
        f"{PICKLED}/pytorch_model.bin",
    } < hub.downloaded()
    assert len(hub.downloaded()) == 4
