"""Two tasks on a replica of the hub, and the clients that pin and read them in processes of their own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks import suites
from benchmarks.lock import DatasetLock, FileLock, Lock, RepoLock, SplitLock
from benchmarks.suites import ClipSuite, Suite
from tests.hub import data
from tests.hub.server import Hub

ROOT = Path(__file__).parents[1]
TASKS = ("pcam", "fer2013")  # booleans in parquet with a split too many; a WebDataset without a card
BASE = "openai/clip-vit-base-patch32"
SAFE, PICKLED = (f"tanganke/clip-vit-base-patch32_{task}" for task in TASKS)
BASE_FILES = {
    "config.json": b"{}",
    "preprocessor_config.json": b'{"size": 224}',
    "tokenizer.json": b'{"model": {}}',
    "merges.txt": b"#version: 0.2",
    "vocab.json": b'{"a": 0}',
    "README.md": b"# base",
    "pytorch_model.bin": b"pickled",
    "tf_model.h5": b"hdf5",
}
BASE_LOCKED = {*BASE_FILES, "model.safetensors"} - {"README.md", "pytorch_model.bin", "tf_model.h5"}


@dataclass(frozen=True)
class Replica:
    """A served hub, and a folder for the suite file, the lock and the client's caches."""

    hub: Hub
    folder: Path
    downloaded: set[str] = field(default_factory=set)

    @property
    def suite_file(self) -> Path:
        return self.folder / "suite.json"

    @property
    def suite(self) -> ClipSuite:
        return suites.load_clip(str(self.suite_file))

    @property
    def lock(self) -> Path:
        return self.folder / "lock.json"

    def environment(self, timeout: int = 5) -> dict[str, str]:
        """A client's environment, with caches of its own."""
        own = {"EPMQ_CACHE": str(self.folder / "epmq"), "OMP_NUM_THREADS": "1"}
        online = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
        return {**self.hub.env(self.folder / "cache", timeout), **online, **own}

    @property
    def partial(self) -> Path:
        return self.folder / "lock.json.partial"

    def start_pin(self) -> subprocess.Popen[str]:
        """``epmq pin``, in a process of its own."""
        arguments = ["pin", str(self.suite_file), "--lock", str(self.lock)]
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cli", *arguments],
            env=self.environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pin(self) -> subprocess.CompletedProcess[str]:
        process = self.start_pin()
        said, complained = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, said, complained)

    def script(self, source: str, timeout: int = 5) -> Any:
        """What a Python program prints, as JSON; it starts with the suite, its lock and no waiting."""
        head = (
            "import json, time\nfrom pathlib import Path\n"
            "waits = []\ntime.sleep = waits.append\n"
            "from benchmarks import lock, suites\nfrom benchmarks.sources import Sources\n"
            "from epmq.errors import UserError\n"
            "WEIGHTS = ('config.json', '*.json', '*.txt', '*.safetensors', '*.bin')\n"
            f"suite, path = suites.load({str(self.suite_file)!r}), Path({str(self.lock)!r})\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", head + source],
            env=self.environment(timeout),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def described() -> dict[str, Any]:
    """The suite of the two tasks, with the replica's sample counts."""
    content: dict[str, Any] = json.loads((suites.FOLDER / "clip-vit-b32-8.json").read_text("utf-8"))
    tasks = {task.task: task for task in suites.load_clip("clip-vit-b32-20").tasks}
    entries = []
    for name in TASKS:
        counts = data.DATA[name].splits
        spec = tasks[name].dataset
        sizes = {"train_size": None, "eval_size": counts[spec.eval_split]}
        entries.append({"use": name, "expert": tasks[name].expert, "dataset": {**spec.model_dump(), **sizes}})
    return {**content, "name": "two-tasks", "tasks": entries, "rehearsal": True}


def write_repositories(folder: Path) -> None:
    """The repositories of the two tasks' data, the base and two experts."""
    for task in suites.load_clip("clip-vit-b32-20").tasks:
        if task.task in TASKS:
            drawn = data.samples(task.task, len(task.class_names))
            data.write(folder / "datasets" / task.dataset.path, task, drawn)
    for repo, files in {
        BASE: BASE_FILES,
        SAFE: {"config.json": b"{}"},
        PICKLED: {"config.json": b"{ }", "pytorch_model.bin": b"expert"},
    }.items():
        home = folder / "models" / repo
        home.mkdir(parents=True)
        for name, content in files.items():
            (home / name).write_bytes(content)
        if repo != PICKLED:
            weights = {"weight": np.full(2000, len(repo), np.float32)}
            save_file(weights, home / "model.safetensors")


def lock_of(hub: Hub, suite: Suite) -> Lock:
    """The lock of what the replica serves now, made without the hub's client; all labels are said to be 0."""
    models = {BASE: sorted(BASE_LOCKED), SAFE: ["config.json", "model.safetensors"]}
    models[PICKLED] = ["config.json", "pytorch_model.bin"]
    parquet = {split: [f"data/{split}-00000-of-00001.parquet"] for split in ("train", "test")}
    archives = {split: [f"{split}/0.tar"] for split in ("train", "test")}
    tasks = {task.task: task.dataset for task in suite.tasks}
    datasets = {}
    for task, form, files in (("pcam", "parquet", parquet), ("fer2013", "webdataset", archives)):
        repo = _repo_lock(
            hub, "datasets", tasks[task].path, [name for part in files.values() for name in part]
        )
        counts = data.DATA[task].splits
        splits = {
            name: SplitLock(files=part, samples=counts[name], labels={0: counts[name]})
            for name, part in files.items()
        }
        datasets[task] = DatasetLock(
            **repo.model_dump(), config=None, format=form, features=None, splits=splits
        )
    return Lock(
        suite=suite.name,
        suite_version=suite.version,
        fingerprint=suites.fingerprint(suite),
        created="2026-01-01T00:00:00+00:00",
        models={name: _repo_lock(hub, "models", name, files) for name, files in models.items()},
        datasets=datasets,
    )


def _repo_lock(hub: Hub, kind: str, name: str, files: list[str]) -> RepoLock:
    held = {file: hub.read(f"{kind}/{name}", file) for file in files}
    hashes = {
        file: FileLock(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for file, content in held.items()
    }
    return RepoLock(id=name, revision=hub.head(f"{kind}/{name}"), files=hashes)
