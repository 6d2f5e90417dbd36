"""The command line. Needs the extra `cli`; without it, `main` says so in one line."""

from __future__ import annotations

import io
import os
import sys

INTERRUPTED = 130


def main() -> None:
    """The program `anymq`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the symbols shows ? instead
    try:
        from anymq.cli.app import app
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        sys.stderr.write("anymq: the command line is not installed: pip install 'anymq[cli]'\n")
        raise SystemExit(2) from None
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # Sessions in the middle of something would otherwise be waited for.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise
