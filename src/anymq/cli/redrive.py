"""anymq redrive"""

from __future__ import annotations

import typer
from rich.text import Text

from anymq.broker import connect
from anymq.cli.receive import subscription_of
from anymq.cli.screen import err, out
from anymq.cli.send import URL, duration
from anymq.errors import AnymqError, NotFoundError
from anymq.redrive import RedriveReport, with_letters

WAIT = typer.Option(
    "2s", "--wait", metavar="TIME", help="End when no letter came for so long: 500ms, 1m."
)
EVERY = 1_000  # letters between two plain lines


def redrive(
    url: str = URL,
    subscription: str = typer.Argument(
        metavar="TOPIC/SUBSCRIPTION", help="Whose dead letters, as in orders/billing."
    ),
    limit: int | None = typer.Option(None, "--limit", "-n", min=1, help="Move so many at most."),
    wait: str = WAIT,
) -> None:
    """Move the dead letters of a subscription back into its own queue.

    They keep id, body, key and headers, and are handled anew from attempt 1. A letter is removed
    once its message is stored: what is interrupted has moved some of them, and lost none. What
    fails again meanwhile is left.
    `anymq receive URL orders_billing_dead/dead --no-ack` shows them before.

    Exit status: 0, also when there are none; 2 for wrong usage, a subscription without dead
    letters or a broker that does not answer; 130 when interrupted.
    """
    at = with_letters(subscription_of(subscription, None))
    timeout = duration("--wait", wait)
    moved = RedriveReport()
    with connect(url) as broker, err().status(Text(f"{at}: looking for letters")) as status:
        printed = 0

        def show(report: RedriveReport) -> None:
            nonlocal moved, printed
            moved = report
            status.update(Text(f"{at}: {report}"))
            if not err().is_terminal and report.redriven >= printed + EVERY:
                printed = report.redriven
                err.print(f"{at}: {report}", soft_wrap=True)

        try:
            report = broker.redrive(at, limit=limit, timeout=timeout, on_progress=show)
        except NotFoundError as error:
            raise NotFoundError(
                f"{error}\n{at} and its dead letters must both exist: a consumer with max_attempts"
                " or dead_letter has them made by broker.provision()"
            ) from error
        except (AnymqError, KeyboardInterrupt):
            err.print(f"anymq: {at}: stopped early, {moved}", soft_wrap=True)
            raise
    out.print(f"{at}: {report}", soft_wrap=True)
