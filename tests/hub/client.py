"""A process with the real clients in it, which read their settings when they are imported; see ``Client``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
LOOP = """
import json, sys
answers, sys.stdout = sys.stdout, sys.stderr  # what clients print is no answer
for line in sys.stdin:
    names = {}
    try:
        exec(json.loads(line), names)
        answer = {"answer": names.get("answer")}
    except Exception as error:
        chain = [error]
        while chain[-1].__cause__ or chain[-1].__context__:
            chain.append(chain[-1].__cause__ or chain[-1].__context__)
        answer = {"error": " < ".join(f"{type(e).__name__}: {e}" for e in chain)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class ClientError(Exception):
    """What the code in the client's process raised, with its causes."""


class Client:
    """Runs code in one process after another piece of code, so that imports are paid for once.

    >>> with Client(hub.env(cache)) as client:
    ...     sha = client.run("from huggingface_hub import HfApi; answer = HfApi().model_info('a/b').sha")
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        path = {"PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", LOOP]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**env, **path})

    def run(self, code: str, **values: object) -> Any:
        """What the code leaves in ``answer`` (as JSON); ``values`` are its variables. Raises ClientError."""
        given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(given + code) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["answer"]

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # an orderly end takes seconds where torch is loaded
        self._process.communicate()
