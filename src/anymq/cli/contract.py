"""anymq contract"""

from __future__ import annotations

from pathlib import Path

import typer

from anymq.cli.compare import HTML, JSON, ONLY, UNFOLD
from anymq.cli.run import run
from anymq.testing.columns import parse


def contract(
    url: str = typer.Argument(
        metavar="URL",
        help="A broker that runs, or memory, rabbitmq, redis, kafka, pubsub, rabbitmq@4.0.",
    ),
    only: list[str] = ONLY,
    json: Path | None = JSON,
    html: Path | None = HTML,
    unfold: bool = UNFOLD,
) -> None:
    """Run the contracts against one broker.

    It makes topics and subscriptions of its own and removes them at the end. A broker given by
    its URL is never killed or paused: contracts that need that are not run.

    Exit status: 0; 1 when a cell is broken; 2 for wrong usage or a broker that does not answer.
    """
    sources = parse([url])
    raise typer.Exit(
        run(sources, only, asked_for=True, json_file=json, html_file=html, unfold=unfold)
    )
