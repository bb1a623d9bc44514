"""Being asked to stop from outside, without losing anything."""

import signal
import types


class StopSignals:
    """While in force, SIGTERM and SIGUSR1 (preemption, time limits) ask for a save instead of killing."""

    _signals = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received = False

    def requested(self) -> bool:
        return self._received

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._receive) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self._received = True
