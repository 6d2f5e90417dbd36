"""A cell for people: what was judged, how, and the witness as a timeline."""

from __future__ import annotations

from anymq.testing.contract import Contract
from anymq.testing.history import timeline
from anymq.testing.verdict import Cell, Outcome

MEANING = {
    Outcome.HOLDS: "holds, and must",
    Outcome.EMULATED: "holds, by what anymq adds on top",
    Outcome.DIFFERS: "differs, as declared",
    Outcome.NOT_WITNESSED: "not promised, and no difference was seen",
    Outcome.STAND_IN_DIFFERS: "the stand-in differs from the service, as known",
    Outcome.BROKEN: "not as declared",
    Outcome.UNKNOWN: "too little happened to say",
    Outcome.NOT_RUN: "not run",
}


def explain(contract: Contract, cell: Cell) -> str:
    """The judgement in full."""
    guarantee = contract.guarantee.value if contract.guarantee else "must hold everywhere"
    lines = [
        f"{contract} ({guarantee})",
        f"{cell.column}: {cell.outcome}: {MEANING[cell.outcome]}; declared {cell.level};"
        f" {cell.seconds:.1f} s",
    ]
    if cell.detail:
        lines += ["", cell.detail]
    if cell.witness:
        lines += ["", "witness:", timeline(cell.witness)]
    return "\n".join(lines)
