"""What sessions leave behind that were opened, used and closed: threads, sockets, memory.

`python -m anymq.testing.leftovers` counts in a process of its own, where nobody else opens
anything: the first line of its input says what to use, in JSON; it answers with one line.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import anymq
from anymq.testing.child import subscription_from_dict, subscription_to_dict
from anymq.topics import Subscription

OPEN_FILES = "/dev/fd"  # one entry for each of this process, on Linux and macOS
SETTLE, TICK = 2.0, 0.02  # seconds until what is left is left behind; how often one looks
Counts = dict[str, int]


def left_behind(url: str, at: Subscription, warm: int, cycles: int, *, apart: bool) -> Counts:
    """How much more there is after `cycles` sessions than after the first `warm` of them. `apart`:
    counted in another process, with its sockets and memory; here, only the threads and objects of
    these sessions, for others come and go meanwhile."""
    if not apart:
        return Cycles(url, at).grown(warm, cycles, dict)
    command = [sys.executable, "-m", "anymq.testing.leftovers"]
    wanted = {"url": url, "at": subscription_to_dict(at), "warm": warm, "cycles": cycles}
    done = subprocess.run(command, input=json.dumps(wanted), text=True, capture_output=True)
    if done.returncode:
        raise ChildProcessError(f"it ended with status {done.returncode}: {done.stderr[-2000:]}")
    found: Counts = json.loads(done.stdout)
    return found


class Cycles:
    """Opens sessions, uses and closes them, and remembers what was theirs."""

    def __init__(self, url: str, at: Subscription) -> None:
        self.url, self.at = url, at
        self.objects: list[weakref.ref[object]] = []
        self.threads: list[weakref.ref[threading.Thread]] = []

    def grown(self, warm: int, cycles: int, counted: Callable[[], Counts]) -> Counts:
        self._run(warm)
        before = self._counts() | counted()
        self._run(cycles - warm)
        after = self._counts() | counted()
        return {what: count - before[what] for what, count in after.items()}

    def _run(self, times: int) -> None:
        for _ in range(times):
            self._once()

    def _once(self) -> None:
        with anymq.connect(self.url) as broker:
            consumer, producer = broker.consumer(self.at), broker.producer(self.at.topic)
            self.objects += map(weakref.ref, (broker, consumer, producer))
            self.threads += map(weakref.ref, consumer._threads)
            producer.send_many([anymq.Message(b"one"), anymq.Message(b"two")])
            got = consumer.receive(2, 10.0)
            while len(got) < 2:
                got += consumer.receive(2 - len(got), 10.0)
            for delivery in got:
                delivery.ack()

    def _counts(self) -> Counts:
        """What there is when all that can go has gone: to collect does nothing while another
        thread is collecting."""
        until = time.monotonic() + SETTLE
        while True:
            gc.collect()
            left = {
                "objects": sum(one() is not None for one in self.objects),
                "threads of consumers": sum(_alive(one()) for one in self.threads),
            }
            if not any(left.values()) or time.monotonic() > until:
                return left
            time.sleep(TICK)


def _alive(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()


def _of_this_process() -> Counts:
    return {
        "threads": threading.active_count(),
        "open files and sockets": len(os.listdir(OPEN_FILES)),
        "blocks of memory": sys.getallocatedblocks(),
    }


def main() -> None:
    wanted = json.loads(sys.stdin.read())
    cycles = Cycles(wanted["url"], subscription_from_dict(wanted["at"]))
    found = cycles.grown(wanted["warm"], wanted["cycles"], _of_this_process)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
