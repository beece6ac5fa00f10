"""What this repository runs, one session each: ``nox -l`` lists them, ``nox -s NAME -- ARGS`` runs one."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "lint"]

QUICKSTART = Path("runs") / "quickstart"
SMALL = ["--comparison", "quickstart"]  # the rows that matter, at 4 bits
REHEARSAL = Path("runs") / "rehearsal"
BOARD = Path("runs") / "board"
GOLDEN = Path("results") / "committed" / "golden"
SOURCES = ["epmq", "baselines", "benchmarks", "results", "docs", "tests", "noxfile.py"]
LOADERS = (  # versions that load packed checkpoints in `formats`
    ("transformers==5.23.0", "compressed-tensors==0.20.0"),
    ("transformers==4.57.6", "compressed-tensors==0.13.0"),
)
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Containers often tell Python to keep no bytecode; every process would then compile torch and transformers
# again, which is most of its start. It is kept apart from the sources.
BYTECODE = {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(".nox").absolute() / "bytecode"),
}


def install(session: nox.Session, *extras: str) -> None:
    """Install released packages and this checkout, editable; keep the session's commands off the network."""
    session.install("--prerelease=disallow", "-e", f".[{','.join(extras)}]" if extras else ".")
    session.env.update({**OFFLINE, **BYTECODE})


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the embedded suite's comparison at 4 bits and print its table; arguments go to `epmq run`."""
    install(session)
    session.run("epmq", "run", "micro-clip-8", *SMALL, *session.posargs, "--out", str(QUICKSTART))
    session.run("epmq", "table", str(QUICKSTART), "--save")


@nox.session(name="quickstart-text")
def quickstart_text(session: nox.Session) -> None:
    """Run the embedded text suite's comparison and print its table; arguments go to `epmq run`."""
    install(session, "lm")
    session.run("epmq", "run", "micro-glue-8", *SMALL, *session.posargs, "--out", f"{QUICKSTART}-text")
    session.run("epmq", "table", f"{QUICKSTART}-text", "--save")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, on up to four cores; arguments go to pytest (`-n 0`: on one, in this process)."""
    install(session, "test")
    workers = ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    session.run("pytest", "--durations=20", *workers, *session.posargs)


@nox.session
def cluster(session: nox.Session) -> None:
    """Compute cells on the workers of a Ray cluster, which needs a machine that is not busy."""
    install(session, "test")
    session.run("pytest", "-n", "0", "tests/cluster", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Kill commands at 50 random moments, fill the disk at 20: the folder is whole and goes on."""
    install(session, "test")
    session.run("pytest", "-n", "0", "tests/kills", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it outside the checkout, and list, run, table, report and board with it."""
    work = Path(session.create_tmp()).absolute()
    shutil.rmtree(work, ignore_errors=True)
    session.run("uv", "build", "--wheel", "--out-dir", str(work), external=True)
    session.install("--prerelease=disallow", *map(str, work.glob("*.whl")))
    session.env.update(OFFLINE)
    session.chdir(work)
    session.run("epmq", "list")
    asked = ["--merge", "ties", "--method", "gptq", "epmq-features", "--bits", "4", "--samples", "16"]
    session.run("epmq", "run", "micro-clip-8", *asked, "--controls", "experts", "--out", "out")
    for command in (["table", "out", "--save"], ["report", "out"], ["verify", "out"], ["board", "out"]):
        session.run("epmq", *command)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    install(session, "test", "lint", "browser")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Check the pages against records and code, and build the site (`-- serve` shows it while editing)."""
    install(session, "docs")
    session.run("python", "-m", "docs.tools.fill", "--check")
    session.env["NO_MKDOCS_2_WARNING"] = "1"  # an advertisement of the theme's makers
    session.run("mkdocs", *(session.posargs or ["build"]), "--strict")


@nox.session
def site(session: nox.Session) -> None:
    """Build the pages with the leaderboard and every run's report in them; arguments are results folders."""
    install(session, "docs")
    shutil.rmtree(BOARD, ignore_errors=True)
    session.run("epmq", "board", *session.posargs, "--out", str(BOARD))
    session.env.update({"EPMQ_BOARD": str(BOARD), "NO_MKDOCS_2_WARNING": "1"})
    session.run("mkdocs", "build", "--strict")


@nox.session
def regression(session: nox.Session) -> None:
    """Run the fixed part of both embedded suites and compare it with the committed golden runs."""
    install(session, "lm")
    session.env["OMP_NUM_THREADS"] = "1"  # the suites run side by side
    work = Path(session.create_tmp())
    shutil.rmtree(work, ignore_errors=True)

    def run(suite: str) -> None:
        asked = ["--comparison", "regression", "--out", str(work / suite)]
        session.run("epmq", "run", suite, *asked)
        session.run("epmq", "check", str(work / suite), "--golden", str(GOLDEN), *session.posargs)

    with ThreadPoolExecutor() as pool:
        list(pool.map(run, ("micro-clip-8", "micro-glue-8")))


@nox.session
def formats(session: nox.Session) -> None:
    """Load packed checkpoints by plain transformers, without epmq, in two versions; fill the docs' table."""
    install(session, "test")
    work = Path(session.create_tmp()).absolute()
    shutil.rmtree(work, ignore_errors=True)
    session.run("python", "-m", "tests.formats.made", str(work / "models"))
    for number, versions in enumerate(LOADERS):
        python = str(work / f"loader-{number}" / "bin" / "python")
        session.run("uv", "venv", "--quiet", str(work / f"loader-{number}"), external=True)
        packages = ["torch", "accelerate", *versions]
        session.run("uv", "pip", "install", "--quiet", "--python", python, *packages, external=True)
        out = str(Path("docs") / "formats" / f"{'-'.join(versions).replace('==', '-')}.json")
        session.run(python, "tests/formats/probe.py", str(work / "models"), out, external=True)
    session.run("python", "-m", "docs.tools.fill")


@nox.session
def report(session: nox.Session) -> None:
    """Test the HTML report and the board in headless Chromium (Debian: chromium, chromium-driver)."""
    install(session, "test", "browser")
    pages = ("report", "board")
    session.run("pytest", *(f"tests/results/test_{page}_browser.py" for page in pages), *session.posargs)


@nox.session(name="check-submission")
def check_submission(session: nox.Session) -> None:
    """Judge a contributed results folder; arguments: its path, and --cells N."""
    install(session)
    session.run("python", "-m", "benchmarks.contribute.submission", *session.posargs)


@nox.session
def rehearsal(session: nox.Session) -> None:
    """Run the paper's suites end to end against a local replica of the hub with made-up stand-ins."""
    install(session, "test")
    session.run("python", "-m", "tests.hub.rehearse", "--out", str(REHEARSAL), *session.posargs)


@nox.session(name="clip_vit_b32")
def clip_vit_b32(session: nox.Session) -> None:
    """Reproduce the paper's comparison on CLIP ViT-B/32 with 8 tasks: downloads, wants a GPU."""
    reproduce(session, "clip-vit-b32-8")


@nox.session(name="clip_vit_l14")
def clip_vit_l14(session: nox.Session) -> None:
    """Reproduce the paper's comparison on CLIP ViT-L/14 with 20 tasks: downloads, wants a GPU."""
    reproduce(session, "clip-vit-l14-20")


@nox.session
def glue(session: nox.Session) -> None:
    """Reproduce the paper's comparison on FLAN-T5-base with GLUE: downloads, wants a GPU."""
    reproduce(session, "flan-t5-base-glue8")


def reproduce(session: nox.Session, suite: str) -> None:
    """Run a suite's default comparison from the hub, and put it beside the paper's numbers."""
    session.install("--prerelease=disallow", "-e", ".[lm]")
    out = str(Path("runs") / suite)
    session.run("epmq", "run", suite, *session.posargs, "--out", out)
    session.run("epmq", "table", out, "--save")
    session.run("epmq", "compare", out)
    session.run("epmq", "report", out)


@nox.session
def oracles(session: nox.Session) -> None:
    """Compare with llm-compressor, fusion-bench, HQQ, auto-round and others, which it installs (large)."""
    install(session, "test", "oracles")
    session.run("pytest", "-W", "default", "tests/oracles", *session.posargs)


@nox.session
def studies(session: nox.Session) -> None:
    """Measure speed (GPTQ, walks, evaluation, E-PMQ over GPTQ) and memory at full size (writes 15 GB)."""
    install(session)
    folder = str(Path("runs") / "studies")
    session.run("python", "-m", "benchmarks.studies.speed_gptq", *session.posargs)
    session.run("python", "-m", "benchmarks.studies.scaling")
    session.run("python", "-m", "benchmarks.studies.speed_walk")
    session.run("python", "-m", "benchmarks.studies.speed_together")
    session.run("python", "-m", "benchmarks.studies.speed_pipeline", "--folder", folder)
    session.run("python", "-m", "benchmarks.studies.memory_clip", "--folder", folder)


@nox.session(name="train-micro")
def train_micro(session: nox.Session) -> None:
    """Train the base and the experts of an embedded suite again: -- clip or -- text, then its options."""
    install(session, "lm", "train")
    which, *arguments = session.posargs or ["clip"]
    folder = {"clip": "micro_clip_8", "text": "micro_glue_8"}.get(which)
    if folder is None:
        session.error(f"nox -s train-micro -- clip or text, not {which}")
    session.run("python", "-m", f"benchmarks.embedded.{folder}.train", *arguments)
