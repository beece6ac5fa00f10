"""``python -m tests.hub --folder DIR``: builds the replica's content there and serves it until stopped."""

from __future__ import annotations

import argparse
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.hub.content import build, build_text
from tests.hub.server import Hub
from tests.hub.suites import NAMES, TEXT_NAMES, write_suites


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the content is kept between calls")
    parser.add_argument("--text", action="store_true", help="the text suites, not those of images")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs that ignore it
    names = TEXT_NAMES if given.text else NAMES
    content = (build_text if given.text else build)(given.folder)
    with suppress(KeyboardInterrupt), Hub(content, port=given.port) as hub:
        print(f"content   {content}")
        print(f"suites    {' '.join(map(str, write_suites(given.folder / 'suites', names)))}")
        settings = f"HF_ENDPOINT={hub.endpoint} HF_HOME={given.folder / 'cache'} HF_HUB_DISABLE_XET=1"
        print(f"export {settings}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
