"""What this repository runs, one session each: ``nox -l`` lists them, ``nox -s NAME -- ARGS`` runs one."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "lint"]

QUICKSTART = Path("runs") / "quickstart"
GOLDEN = Path("results") / "golden" / "micro-clip-8"
SOURCES = ["epmq", "baselines", "benchmarks", "results", "tests", "noxfile.py"]
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def install(session: nox.Session, *extras: str) -> None:
    """Install released packages and this checkout, editable; keep the session's commands off the network."""
    session.install("--prerelease=disallow", "-e", f".[{','.join(extras)}]" if extras else ".")
    session.env.update(OFFLINE)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the embedded suite's comparison at 4 bits and print its table; arguments go to `epmq run`."""
    install(session)
    session.run("epmq", "run", "micro-clip-8", "--bits", "4", *session.posargs, "--out", str(QUICKSTART))
    session.run("epmq", "table", str(QUICKSTART), "--save")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    install(session, "test", "lint")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    session.run("mypy")


@nox.session
def regression(session: nox.Session) -> None:
    """Run the fixed part of the embedded suite and compare it with the committed golden run."""
    install(session)
    out = Path(session.create_tmp()) / "run"
    shutil.rmtree(out, ignore_errors=True)
    session.run("epmq", "run", "micro-clip-8", "--comparison", "regression", "--out", str(out))
    session.run("epmq", "check", str(out), "--golden", str(GOLDEN), *session.posargs)


@nox.session
def oracles(session: nox.Session) -> None:
    """Compare with llm-compressor and fusion-bench, which this session installs (large)."""
    install(session, "test", "oracles")
    session.run("pytest", "-W", "default", "tests/oracles", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time GPTQ's factorisation and column loop against the textbook form."""
    install(session)
    session.run("python", "-m", "benchmarks.bench", *session.posargs)


@nox.session(name="train-micro")
def train_micro(session: nox.Session) -> None:
    """Train the embedded suite's base and experts again, from the bundled data."""
    install(session)
    session.run("python", "-m", "benchmarks.micro_clip_8.train", *session.posargs)
