"""Every command that the pages show exists, with the names and files that it mentions."""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import re
from collections.abc import Set
from fnmatch import filter as matching
from pathlib import Path

import pytest

from benchmarks.cli.main import main
from docs.tools.commands import commands as parsed_commands
from docs.tools.commands import parser, reference
from epmq.errors import UserError
from tests.fixtures.pages import PAGES, ROOT, blocks, commands


def listed() -> dict[str, set[str]]:
    """What ``epmq list`` names: suites, merges, methods and controls."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["list", "--json"]) == 0
    return {kind: {row["name"] for row in rows} for kind, rows in json.loads(printed.getvalue()).items()}


KNOWN = listed()
METHODS = KNOWN["methods"]
PLACEHOLDERS = {"DIR", "FILE", "ID", "NAME", "SUITE", "N", "PATH.json", "TASK.json"}
OWN = re.compile(r"[\w-]+\.json")  # suite files that a page makes; tests/docs/test_guides.py runs it


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def registered(page: str, decorator: str = "baseline") -> set[str]:
    """Methods that a page's own examples register; or merges, with ``"merge_method"``."""
    calls = [
        node
        for block in blocks(page)
        if block.language == "python"
        for node in ast.walk(ast.parse(block.code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == decorator
    ]
    return {str(ast.literal_eval(call.args[0])) for call in calls}


def sessions() -> set[str]:
    """What ``nox -s`` takes."""
    found = set()
    for node in ast.parse((ROOT / "noxfile.py").read_text("utf-8")).body:
        for mark in getattr(node, "decorator_list", []):
            if "nox.session" in ast.unparse(mark) and isinstance(node, ast.FunctionDef):
                given = [k.value for k in getattr(mark, "keywords", []) if k.arg == "name"]
                found.add(str(ast.literal_eval(given[0])) if given else node.name)
    return found


def wrong(words: list[str], whole: bool, methods: set[str], merges: Set[str] = frozenset()) -> str:
    """What is wrong with a command, if anything; in a sentence it may lack what is required."""
    words = ["1" if word == "N" else word for word in words if word != "..."]
    try:
        match words:
            case ["epmq", *rest]:
                return wrong_epmq(rest, whole, methods, merges)
            case ["nox", "-s", *rest]:
                asked = rest[: rest.index("--")] if "--" in rest else rest
                return "" if set(asked) <= sessions() else f"no session {asked}"
            case ["python", "-m", module, *_] if module.split(".")[0] in ("benchmarks", "docs", "tests"):
                place = ROOT / module.replace(".", "/")
                there = place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
                return "" if there else f"no module {module}"
            case ["pytest", *rest]:
                lost = [w for w in rest if w.endswith(".py") and not (ROOT / w).is_file()]
                return f"no file {lost}" if lost else ""
    except (UserError, SystemExit) as error:
        return str(error)
    return ""


def wrong_epmq(words: list[str], whole: bool, methods: set[str], merges: Set[str]) -> str:
    if "--help" in words or (len(words) == 1 and not whole):
        there = {command.prog.split()[1] for command, _ in parsed_commands(parser())} | {"COMMAND", "--help"}
        return "" if words[0] in there else f"no command {words[0]}"
    try:
        options = parser().parse_args(words)
    except UserError as error:
        if not whole and "arguments are required" in str(error):
            return ""
        raise
    return "; ".join(f"no {name}" for name in unknown(options, methods, merges) if name not in PLACEHOLDERS)


def unknown(options: argparse.Namespace, methods: set[str], merges: Set[str]) -> list[str]:
    """Names and patterns of a command that name nothing."""
    given = {name: value for name, value in vars(options).items() if value}
    names = {k: [v] if isinstance(v, str) else v for k, v in given.items() if k in ("method", "merge")}
    suites = [given["suite"]] if "suite" in given and not OWN.fullmatch(given["suite"]) else []
    asked = [
        (suites, KNOWN["suites"]),
        (names.get("merge", []), KNOWN["merges"] | merges),
        (given.get("controls", []), KNOWN["controls"]),
        (names.get("method", []), methods | KNOWN["controls"]),
        ([str(given.get("golden", "DIR"))], {"results/committed/golden"}),
    ]
    return [name for names, there in asked for name in names if not matching(there, name)]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_of_the_pages_are_those_of_the_code(path: Path) -> None:
    page = path.read_text("utf-8")
    methods, merges = METHODS | registered(page), registered(page, "merge_method")
    told = {" ".join(w): wrong(w, whole, methods, merges) for w, whole in commands(page)}
    assert not {command: complaint for command, complaint in told.items() if complaint}


@pytest.mark.parametrize(
    "command",
    [
        "epmq run micro-clip-9 --out DIR",
        "epmq run micro-clip-8 --method gptqq --out DIR",
        "epmq run micro-clip-8 --merge tis --out DIR",
        "epmq run micro-clip-8 --colour red --out DIR",
        "epmq tabel DIR",
        "epmq check DIR --golden results/golden",
        "nox -s test",
        "python -m benchmarks.tune",
        "pytest tests/test_nothing.py",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    assert wrong(command.split(), True, METHODS)


def test_both_commands_of_the_readme_are_there() -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    assert 'python -m pip install "nox[uv]" && nox -s quickstart ' in page
    assert 'python -m pip install "nox[uv]" && nox -s tests ' in page
    assert ["nox", "-s", "quickstart"] in [words for words, whole in commands(page) if whole]


def test_every_command_and_option_has_its_place_in_the_reference() -> None:
    page = reference()
    for command, _ in parsed_commands(parser()):
        section = page.partition(f"## {command.prog}\n")[2].partition("\n## ")[0]
        for action in command._actions:
            for flag in action.option_strings[:1]:
                assert flag == "-h" or f"`{flag}" in section, (command.prog, flag)


def test_every_suite_is_named_on_a_page() -> None:
    pages = "\n".join(path.read_text("utf-8") for path in PAGES)
    assert not [suite for suite in KNOWN["suites"] - {"lm"} if f"`{suite}`" not in pages]
