"""What all benchmarks share: runs side by side, medians, ratios, a broker that is far away."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import anymq

MICRO = 1e6


@dataclass
class Used:
    """Seconds per message: processor time of the client, and time that passed."""

    cpu: float
    wall: float


class Stopwatch:
    """From begin(), or its making, to used()."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def used(self, count: int) -> Used:
        return Used(
            (time.process_time() - self._cpu) / count, (time.perf_counter() - self._wall) / count
        )


def published(url: str, topic: anymq.Topic, messages: Iterable[anymq.Message], count: int) -> Used:
    """What anymq uses for so many, with an outcome for each; all must be stored or passed on."""
    outcomes: list[anymq.SendOutcome] = []
    with anymq.connect(url) as broker, broker.producer(topic) as producer:
        clock = Stopwatch()
        producer.send_many(messages, lambda _, outcome: outcomes.append(outcome))
        used = clock.used(count)
    assert [outcome.error for outcome in outcomes] == [None] * count
    return used


@dataclass
class Contest:
    """The same job done by several, in turns: what one of a round is compared with is the same
    round of another, so that a machine that is slow for a while is slow for both."""

    name: str
    runs: Mapping[str, Callable[[], Used]]
    rounds: dict[str, list[Used]] = field(default_factory=dict)

    def round(self, number: int) -> None:
        order = list(self.runs)
        begin = number % len(order)
        for who in order[begin:] + order[:begin]:
            self.rounds.setdefault(who, []).append(self.runs[who]())

    def ratio(self, of: str, to: str, what: str) -> tuple[float, float, float]:
        """How many times less `of` uses than `to`: median, lowest, highest."""
        ratios = [
            getattr(theirs, what) / getattr(ours, what)
            for ours, theirs in zip(self.rounds[of], self.rounds[to], strict=True)
        ]
        return statistics.median(ratios), min(ratios), max(ratios)

    def above(self, of: str, to: str) -> float:
        """Microseconds of processor time per message that `of` uses more than `to`: the median."""
        return MICRO * statistics.median(
            ours.cpu - theirs.cpu
            for ours, theirs in zip(self.rounds[of], self.rounds[to], strict=True)
        )

    def show(self, promises: Mapping[str, str]) -> None:
        """Every runner in a row, with how much more than the first it uses, and what for."""
        first = next(iter(self.runs))
        print(f"\n### {self.name}\n")
        print("| | CPU us/message | messages/s | CPU, times the first | slower | promised |")
        print("| --- | ---: | ---: | ---: | ---: | --- |")
        for who in self.runs:
            rounds = self.rounds[who]
            cpu = statistics.median(used.cpu for used in rounds) * MICRO
            rate = 1 / statistics.median(used.wall for used in rounds)
            ratios = [
                ""
                if who == first
                else "{:.2f} ({:.2f} to {:.2f})".format(*self.ratio(first, who, w))
                for w in ("cpu", "wall")
            ]
            cells = [who, f"{cpu:.1f}", f"{rate:,.0f}", *ratios, promises.get(who, "the same")]
            print(f"| {' | '.join(cells)} |", flush=True)

    def bar(self, of: str, to: str, what: str, least: float) -> None:
        median, _, _ = self.ratio(of, to, what)
        name = {"cpu": "CPU economy", "wall": "rate"}[what]
        verdict = "reached" if median >= least else "MISSED"
        print(f"\n{self.name}: {name} of {of} beside {to}: {median:.2f}, bar {least:g}: {verdict}")


def shape() -> str:
    """The machine in general words."""
    return f"Python {sys.version.split()[0]}, {os.cpu_count()} cores"
