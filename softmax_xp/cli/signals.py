"""Signals that end a command. Only the command line handles them: a library leaves them to its user."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Any  # a function, or one of the signal module's constants

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """The KeyboardInterrupt of a signal.

    It is a class of its own because CPython, after a plain KeyboardInterrupt that was raised in certain imports, ends
    itself by SIGINT although the exception was caught.
    """


class Interruption:
    """SIGINT, SIGTERM and SIGHUP: the first raises Interrupted, the second ends the process at once.

    A handler is set for each of them, because process 1 of a container ignores what it has no handler for.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # the number of the first signal
        self.was_raised = False  # as a KeyboardInterrupt that may still be on its way
        self._deferred = False
        self._ended = False

    @property
    def status(self) -> int:
        """The exit status that shells give to a process which such a signal has ended."""
        return 128 + (self.number or signal.SIGINT)

    def handle(self) -> dict[int, Handler]:
        """Handle the signals from now on, in the main thread; return the handlers that this replaces.

        A signal that is ignored stays so, as SIGHUP after `nohup`.
        """
        self.number, self.was_raised, self._deferred, self._ended = None, False, False, False
        if threading.current_thread() is not threading.main_thread():
            return {}
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        previous = {number: handler for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
        for number in previous:
            signal.signal(number, self._interrupt)
        return previous

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals, and at the end set the previous handlers again."""
        previous = self.handle()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def defer(self) -> None:
        """Let the first signal raise nothing from now on: what remains to be done is short, and must be done."""
        self._deferred, self.was_raised = True, False

    def handle_until_exit(self) -> None:
        """Handle the signals until the interpreter ends, and ignore them then: what is to be done is done."""
        numbers = self.handle()
        atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in numbers])

    def end(self) -> None:
        """Let the first signal, too, end the process at once."""
        self._ended = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None or self._ended:
            try:
                from softmax_xp.files.whole import remove_temporaries  # here, so that the handlers are set early

                remove_temporaries()
            finally:
                os._exit(128 + number)
        self.number = number
        if not self._deferred:
            self.was_raised = True
            raise Interrupted


interruption = Interruption()
