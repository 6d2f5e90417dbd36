"""Ctrl-C at every place where the interpreter may take it.

Python calls the handler of a signal between two instructions of the main thread, where it looks:
after calls and at the start of functions and of rounds of a loop. So a test here does not raise
between lines, where no interrupt ever comes (between the end of a `with` block and the release of
its lock), but has a signal pending before each call of the code under test, one after another.
"""

from __future__ import annotations

import ctypes
import dis
import functools
import signal
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

# Called by the interpreter as a trace function. In C, for otherwise the interrupt would hit it.
_interrupt = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.py_object, ctypes.py_object)(
    ("PyErr_SetInterrupt", ctypes.pythonapi)
)
Trace = Callable[[FrameType, str, Any], Any]


@functools.cache
def _places(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions where the interpreter looks for signals, or that call."""
    looks = ("CALL", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")
    return frozenset(each.offset for each in dis.get_instructions(code) if each.opname in looks)


class Interrupter:
    """Runs code of the main thread with a KeyboardInterrupt at its nth place."""

    def __init__(self, *modules: str) -> None:
        """Files of these modules are the code under test."""
        self.files = {sys.modules[name].__file__ for name in modules}
        self.left = 0
        self.hit = ""  # where it came, or "" when there are fewer places

    def run(self, place: int, function: Callable[[], object]) -> bool:
        """False when `function` ended before."""
        self.left, self.hit = place, ""
        before = signal.signal(signal.SIGINT, self._arrived)
        tracing = sys.gettrace()
        sys.settrace(self._entered)
        try:
            function()
        except KeyboardInterrupt:
            assert self.hit
        finally:
            sys.settrace(tracing)
            signal.signal(signal.SIGINT, before)
        return bool(self.hit)

    def _entered(self, frame: FrameType, event: str, _: Any) -> Trace | None:
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti in _places(frame.f_code):
            self.left -= 1
            if self.left < 0 and not self.hit:
                code = frame.f_code
                self.hit = f"{code.co_qualname}, line {frame.f_lineno}"
                return _interrupt  # from the next instruction on
        return self._step

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if sys.gettrace() is None:
            return  # the second: it was pending while the first arrived
        sys.settrace(None)
        raise KeyboardInterrupt
