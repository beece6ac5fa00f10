"""What must hold of the tree as a whole, whatever is in the modules."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, load_dataset

from benchmarks.suites import prompt

ROOT = Path(__file__).parents[1]
SUITES = sorted((ROOT / "benchmarks" / "suites").glob("*.json"))
EMBEDDED = [ROOT / "benchmarks" / "embedded" / name / "data" for name in ("micro_clip_8", "micro_glue_8")]
DATASETS = sorted(path for data in EMBEDDED for path in data.iterdir() if path.is_dir())
TEXT = {".py", ".md", ".toml", ".json", ".jsonl", ".cff", ".csv", ".tex", ""}
MAX_TREE_BYTES = {  # the first folder that holds a file counts it
    "benchmarks/embedded/micro_clip_8": 30_000_000,
    "benchmarks/embedded/micro_glue_8": 20_000_000,
    "results": 40_000_000,  # three draws of every row, five of some; every rounding and every merge
    "": 3_000_000,
}
MAX_LINES = 400

MAY_IMPORT = {
    "epmq": {"epmq"},
    "baselines": {"baselines", "epmq"},
    "results": {"results", "epmq"},
    "benchmarks": {"benchmarks", "baselines", "epmq", "results"},
}


def tree() -> list[Path]:
    """Every file that is, or would be, committed."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def imported(source: str) -> set[str]:
    """Top-level names that a module imports anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


WINGS = {  # of each package from the bottom up; those of one line do not know each other
    "epmq": [
        ["errors", "files"],
        ["plugins"],
        ["layer", "models"],
        ["calibration", "checkpoints", "merging"],
        ["gather", "merges", "methods", "experts", "packed", "refinement"],
        ["walk"],
        ["quantising"],
    ],
    "benchmarks": [
        ["suites"],
        ["sources"],
        ["workbench"],
        ["images", "text"],
        ["run", "lm_metrics", "embedded"],
        ["export"],
        ["own"],
        ["cli", "contribute", "studies"],
    ],
    "results": [["store"], ["analysis"], ["tables"], ["figures", "paper"], ["judge", "report"], ["board"]],
}
MAX_MODULES = 12  # of a folder


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name; those that ``evaluate`` loads are files, not modules."""
    files = [file for file in sorted((ROOT / package).rglob("*.py")) if "metrics" not in file.parts]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def arrows(package: str) -> dict[str, set[str]]:
    """Which modules of a package each of its modules imports, wherever in its text."""
    known, found = modules(package), {}
    for name, file in known.items():
        nodes = [n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.ImportFrom)]
        named = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
        named |= {str(node.module) for node in nodes}
        found[name] = {x for x in named if x in known and x not in (name, package)}
    return found


def wing(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("package", WINGS)
def test_wings_know_only_those_below_them(package: str) -> None:
    floors = {name: floor for floor, names in enumerate(WINGS[package]) for name in names}
    upwards = [
        f"{name} imports {other}"
        for name, others in arrows(package).items()
        for other in others
        if name != package and wing(name) != wing(other) and floors[wing(name)] <= floors[wing(other)]
    ]
    assert not upwards


@pytest.mark.parametrize("package", [*WINGS, "baselines"])
def test_no_module_imports_itself_by_a_detour(package: str) -> None:
    found = arrows(package)
    while removable := [name for name, others in found.items() if not others]:
        found = {name: others - set(removable) for name, others in found.items() if name not in removable}
    assert not found, "these modules import each other in a circle"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_folders_have_few_modules(package: str) -> None:
    folders = {f.parent for f in modules(package).values()}
    counts = {f.relative_to(ROOT): len([x for x in f.glob("*.py") if x.stem != "__init__"]) for f in folders}
    assert not {str(folder): count for folder, count in counts.items() if count > MAX_MODULES}


def test_wings_say_what_they_are() -> None:
    """Every folder of modules has a docstring in its ``__init__``."""
    files = [f for package in MAY_IMPORT for f in modules(package).values() if f.name == "__init__.py"]
    assert not [str(f) for f in files if not ast.get_docstring(ast.parse(f.read_text("utf-8")))]
    assert {f.parent for package in MAY_IMPORT for f in modules(package).values()} == {
        f.parent for f in files
    }


def bundled(suite: dict[str, Any]) -> list[dict[str, Any]]:
    return [task for task in suite["tasks"] if task.get("dataset", {}).get("path", "").startswith("package:")]


def rows(folder: Path, split: str) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (folder / "data").glob(f"{split}-*.parquet"))


def front_matter(card: Path) -> dict[str, str]:
    """The scalar entries of a card's YAML header."""
    header = card.read_text(encoding="utf-8").split("---\n")[1]
    return dict(re.findall(r"^(\w+): +(.+)$", header, flags=re.MULTILINE))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    """benchmarks -> baselines -> epmq, benchmarks -> results, and nothing imports the tests."""
    forbidden = {*MAY_IMPORT, "tests"} - MAY_IMPORT[package]
    modules = list((ROOT / package).rglob("*.py"))
    assert modules, f"package {package} has no modules"
    wrong = {str(m.relative_to(ROOT)): imported(m.read_text("utf-8")) & forbidden for m in modules}
    assert not {module: names for module, names in wrong.items() if names}


def test_nothing_refers_outside_the_repository() -> None:
    outside = re.compile(r"\.\./shared|(?<![\w.:/-])/(?:home|root|Users|work|mnt)/")
    texts = [path for path in tree() if path.suffix in TEXT]
    assert not [str(path) for path in texts if outside.search(path.read_text("utf-8", errors="replace"))]


def test_the_tree_is_small() -> None:
    sizes = dict.fromkeys(MAX_TREE_BYTES, 0)
    for path in tree():
        name = path.relative_to(ROOT).as_posix()
        sizes[next(folder for folder in MAX_TREE_BYTES if name.startswith(folder))] += path.stat().st_size
    assert not {folder: size for folder, size in sizes.items() if size > MAX_TREE_BYTES[folder]}


def test_source_files_are_short() -> None:
    lengths = {p: len(p.read_text("utf-8").splitlines()) for p in tree() if p.suffix == ".py"}
    assert not {str(path): n for path, n in lengths.items() if n >= MAX_LINES}


@pytest.mark.parametrize("folder", DATASETS, ids=lambda folder: folder.name)
def test_bundled_data_has_card_and_licence_and_loads(folder: Path, tmp_path: Path) -> None:
    assert (folder / "LICENSE").stat().st_size > 0
    assert {"license", "pretty_name"} <= front_matter(folder / "README.md").keys()
    splits = load_dataset(str(folder), cache_dir=str(tmp_path))
    for split, data in splits.items():
        assert len(data) == rows(folder, split)
        assert data.column_names[-1] == "label"
        if isinstance(data.features["label"], ClassLabel):
            assert set(data["label"]) == set(range(data.features["label"].num_classes))
        if "micro_clip_8" in folder.parts:
            assert data.column_names == ["image", "label"]
            assert data[0]["image"].size[0] > 0
        else:
            assert all(data[column][i].strip() for column in data.column_names[:-1] for i in range(9))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suite_agrees_with_its_bundled_data(path: Path) -> None:
    """Sample counts, number of classes and licence are those of the files."""
    for task in bundled(json.loads(path.read_text("utf-8"))):
        data = task["dataset"]
        folder = ROOT / "benchmarks" / data["path"].removeprefix("package:")
        counts = rows(folder, data["train_split"]), rows(folder, data["eval_split"])
        assert counts == (data["train_size"], data["eval_size"]), task["task"]
        card = front_matter(folder / "README.md")
        assert card.get("license_name", card["license"]) == data["licence"].lower(), task["task"]
        stored = json.loads(pq.read_schema(next((folder / "data").glob("test-*"))).metadata[b"huggingface"])
        names = stored["info"]["features"]["label"].get("names")
        known = task["class_names"] if "class_names" in task else prompt.read(task["prompt"]).choices
        assert (names is None) == (known is None), task["task"]
        assert len(names or []) == len(known or []), task["task"]


def test_every_bundled_data_set_is_in_the_notice() -> None:
    notice = (ROOT / "NOTICE").read_text("utf-8")
    folders = [folder.relative_to(ROOT).as_posix() for folder in DATASETS]
    assert not [folder for folder in folders if f"{folder} (" not in notice]
