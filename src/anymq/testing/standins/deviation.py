"""What is said of a stand-in that is wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deviation:
    """One row on which a stand-in is no judge.

    how     what it does, and the service does not
    source  where that can be checked
    always  it shows in every run, so that a run in which it does not is a finding. False: by
            chance, or where the case would see nothing either way
    error   the class of the error that the case ends with for it; any other is a fault of ours
    run     False: the case is not run there, for it would end the stand-in, or take minutes
    """

    how: str
    source: str
    always: bool = True
    error: str | None = None
    run: bool = True

    def __str__(self) -> str:
        return f"{self.how} ({self.source})"
