"""The anomalies that a history can show, and what a check found of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from anymq.testing.history import Event

EXAMPLES = 8

CLASSES = {
    "lost_prefix": "stored, never delivered, and earlier than anything delivered of its stream",
    "lost_middle": "stored, never delivered, though later ones of its stream were",
    "lost_postfix": "stored, never delivered, nor anything after it",
    "forgotten": "given back, or held by a consumer that ended, and never delivered again",
    "ghost": "delivered where nobody sent it",
    "stored_though_failed": "reported as certainly not stored, and delivered",
    "unanswered": "a send that never got an outcome",
    "altered": "delivered with another body, key or headers than it was sent with",
    "after_nack": "again because it was nacked",
    "after_release": "again because it was released",
    "after_lane": "again because an earlier one of its key was given back, and took it along",
    "after_lease": "again because the lease had run out",
    "after_crash": "again because its consumer died",
    "after_close": "again because its consumer closed without settling it",
    "after_fault": "again after a fault of the broker or of the connection",
    "after_resend": "again because it was sent again",
    "after_ack": "again although it was acked",
    "unexplained": "again for no reason that the history knows",
    "inversion": "first delivered after a later one of its stream",
    "concurrent": "delivered while another consumer holds a message of its key",
    "overtaking": "delivered or acked while an earlier one of its key was given back and not here",
    "attempt_gap": "the attempt number is not the previous one plus one",
    "beyond_max": "delivered again after it had failed max_attempts times",
    "letter_missing": "should be in the dead letters and is not",
    "letter_and_processed": "acked, and in the dead letters too",
    "letter_duplicated": "in the dead letters more than once",
    "early": "delivered before it was due",
    "late": "delivered later than due plus the tolerance",
}
GROUPS = {
    "lost": ("lost_prefix", "lost_middle", "lost_postfix"),
    # for no reason that the consumer gave
    "duplicate": ("after_ack", "after_lease", "after_close", "unexplained"),
    "redelivered": (
        *("after_nack", "after_release", "after_lane", "after_lease", "after_crash"),
        *("after_close", "after_fault", "after_resend", "after_ack", "unexplained"),
    ),
}
NEVER = ("ghost", "altered", "stored_though_failed")  # no broker may do this, whatever it declares


@dataclass(slots=True)
class Finding:
    """One class of anomaly: how often, and the events that witness the first few."""

    name: str
    count: int = 0
    worst: float = 0.0  # displacement of an inversion, seconds early or late
    examples: list[list[Event]] = field(default_factory=list)

    def __str__(self) -> str:
        worst = f" (worst {self.worst:.3g})" if self.worst else ""
        return f"{self.count} {self.name}{worst}: {CLASSES[self.name]}"


class Judgement:
    """What the checker found, by class, and how much there was to judge."""

    def __init__(self) -> None:
        self.findings = {name: Finding(name) for name in CLASSES}
        self.exercised: dict[str, int] = {}

    def add(self, name: str, *events: Event | None, worst: float = 0.0) -> None:
        finding = self.findings[name]
        finding.count += 1
        finding.worst = max(finding.worst, worst)
        if len(finding.examples) < EXAMPLES:
            finding.examples.append([event for event in events if event])

    def saw(self, what: str, count: int = 1) -> None:
        self.exercised[what] = self.exercised.get(what, 0) + count

    def named(self, *names: str) -> list[Finding]:
        """The findings of these classes or groups of classes that are not empty."""
        wanted = [one for name in names for one in GROUPS.get(name, (name,))]
        return [self.findings[one] for one in wanted if self.findings[one].count]

    def count(self, *names: str) -> int:
        return sum(finding.count for finding in self.named(*names))
