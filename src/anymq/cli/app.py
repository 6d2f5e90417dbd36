"""The commands, and what all of them do with errors and interrupts."""

from __future__ import annotations

import logging
import signal
import threading
from importlib.metadata import version
from typing import Any

import typer
from typer.core import TyperGroup

from anymq.cli import (
    INTERRUPTED,
    adapters,
    compare,
    contract,
    diff,
    explain,
    receive,
    redrive,
    send,
    up,
)
from anymq.cli.plain import safe
from anymq.cli.screen import err, out
from anymq.errors import AnymqError


class Commands(TyperGroup):
    """Errors become a few lines instead of a traceback, an interrupt ends what was started."""

    def invoke(self, ctx: Any) -> Any:
        # What is logged while a contract provokes it is no news, and would tear the display.
        logging.getLogger().addHandler(logging.NullHandler())
        try:
            return super().invoke(ctx)
        except AnymqError as error:
            # What a broker says may quote what somebody sent.
            text = safe(str(error), keep="\n")
            err.print(f"anymq: {text}", soft_wrap=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            _end_everything()
            raise typer.Exit(INTERRUPTED) from None


def _end_everything() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    from anymq import local

    stopped = local.stop_all()
    err.print(f"anymq: interrupted{'; the brokers it started are stopped' if stopped else ''}")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One producer/consumer interface for message brokers, and the proof of where they differ.",
)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"anymq {version('anymq')}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


app.command("compare")(compare.compare)
app.command("diff")(diff.diff)
app.command("explain")(explain.explain)
app.command("contract")(contract.contract)
app.command("send")(send.send)
app.command("receive")(receive.receive)
app.command("redrive")(redrive.redrive)
app.command("adapters")(adapters.adapters)
app.command("up")(up.up)
