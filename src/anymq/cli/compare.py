"""anymq compare"""

from __future__ import annotations

from pathlib import Path

import typer

from anymq.cli.run import run
from anymq.testing.columns import DEFAULT, parse

ONLY = typer.Option(
    [], "--only", metavar="FAMILY|ID", help="Only these contracts: DEL, ACK-03 (repeatable)."
)
JSON = typer.Option(None, "--json", metavar="FILE", help="Write cells and witnesses as JSON, too.")
HTML = typer.Option(
    None, "--html", metavar="FILE", help="Write a page with all of it, too: one file, no scripts."
)
UNFOLD = typer.Option(
    False,
    "--unfold",
    help="List every contract, also those of which the line of the family tells all; with --only "
    "every one is.",
)


def compare(
    backend: list[str] = typer.Option(
        [],
        "--backend",
        "-b",
        metavar="NAME[@VERSION]|URL",
        help=f"A broker: {', '.join(DEFAULT)}, rabbitmq@4.0, or the URL of one that runs"
        f" (repeatable). Without it: the first {len(DEFAULT)}.",
    ),
    only: list[str] = ONLY,
    json: Path | None = JSON,
    markdown: Path | None = typer.Option(
        None,
        "--markdown",
        metavar="FILE",
        help="Write the matrix as Markdown, too; in a file that has the marks, between them.",
    ),
    html: Path | None = HTML,
    record: Path | None = typer.Option(
        None,
        "--record",
        metavar="FILE",
        help="Write the outcomes alone as JSON, too: what README's matrix and anymq diff go by.",
    ),
    unfold: bool = UNFOLD,
) -> None:
    """Run every contract against every broker and show where they differ.

    Brokers that are named, not given as a URL, are found or started for the purpose and stopped
    at the end: a container, a private Debian root, an installed program, whatever is there.

    Exit status: 0; 1 when a cell is broken, or when one of the brokers that are compared
    by default cannot be had (the others still run; ANYMQ_ALLOW_MISSING=1 accepts that); 2 for
    wrong usage, or when a broker named by --backend cannot be had; 130 when interrupted.
    """
    sources = parse(backend or DEFAULT)
    raise typer.Exit(
        run(
            sources,
            only,
            asked_for=bool(backend),
            json_file=json,
            markdown_file=markdown,
            html_file=html,
            record_file=record,
            unfold=unfold,
        )
    )
