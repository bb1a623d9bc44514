"""Being asked to stop from outside, without losing anything."""

import logging
import signal
import time
import types

from flaresemi.portability import ASKED_TO_LEAVE

logger = logging.getLogger(__name__)

#: Time that a limit reserves for saving and leaving, at most; of a short limit, a tenth. Chosen.
_RESERVE_SECONDS = 60.0


class StopSignals:
    """While in force, SIGTERM and SIGUSR1 (preemption, time limits) ask for a save instead of killing.

    So does a time limit, early enough to end before it: what works may be long at work between two questions, so the
    longest time between two of them is left, and a reserve besides.

    Args:
        limit_seconds: By a clock that nobody sets; None: no limit.
        began: When the limit began, as `time.monotonic` of this machine has it; None: now.
    """

    def __init__(self, limit_seconds: float | None = None, *, began: float | None = None) -> None:
        self._received = False
        self._limit = limit_seconds
        self._began = time.monotonic() if began is None else began
        self._asked: float | None = None
        self._longest = 0.0

    def requested(self) -> bool:
        if not self._received and self._limit is not None and self._limit_is_near(self._limit):
            logger.info("the time limit is near: stopping")
            self._received = True
        return self._received

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._receive) for number in ASKED_TO_LEAVE}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _limit_is_near(self, limit_seconds: float) -> bool:
        now = time.monotonic()
        if self._asked is not None:
            self._longest = max(self._longest, now - self._asked)
        self._asked = now
        return now - self._began + self._longest + min(_RESERVE_SECONDS, limit_seconds / 10) >= limit_seconds

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True
