"""The thread on which a sender that waits for the network is called."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE = 5.0  # seconds that it waits for more to do before it ends


class Pump:
    """Runs one job after another on a daemon thread, which is there while there is something to do
    and a little longer: nobody has to close it. Jobs must not raise. Any thread."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def run(self, job: Callable[[], object]) -> None:
        """Hand it over, and return at once."""
        with self._lock:
            self._jobs.put(job)
            if self._thread is None or not self._thread.is_alive():  # also after a fork
                self._thread = threading.Thread(target=self._work, name="anymq-send", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """It ends when it has done what it was given, without waiting for more."""
        with self._lock:
            if self._thread is not None:
                self._jobs.put(None)

    def _work(self) -> None:
        while True:
            job = self._next()
            if job is not None:
                job()
                del job  # while it waits, it keeps nothing of what it has done
                continue
            with self._lock:
                if self._jobs.empty():
                    self._thread = None
                    return

    def _next(self) -> Callable[[], object] | None:
        try:
            return self._jobs.get(timeout=IDLE)
        except Empty:
            return None
