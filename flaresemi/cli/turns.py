"""The images of a prediction in turn: of one process, or shared among several that go through the same list."""

import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from flaresemi.cli.launching import orphaned
from flaresemi.compute.sharding import Shard
from flaresemi.dataset import Case
from flaresemi.inference.prediction_records import claims_folder
from flaresemi.locking import Claims

logger = logging.getLogger("flaresemi.cli.predict")


class Turns:
    """Gives every image once, to whichever process asks for it first, which has it until its label map is written.

    When the last one has been given, what others are at work on is waited for, and taken over from those that die: the
    end of the turns is the end of the whole list. As a context it stops waiting when it is left.

    Args:
        jobs: The cases to predict and their label maps, as this process found them.
        part: Of this process, of all cases.
        case_ids: All cases, also those that are predicted already.
        results: The folder of the label maps.
        is_predicted: Whether a case is done, by this process or another.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[Case, Path]],
        part: Shard,
        case_ids: Sequence[str],
        results: Path,
        is_predicted: Callable[[Case, Path], bool],
    ) -> None:
        self._jobs = {case.id: (case, output) for case, output in jobs}
        self._results = results
        self._is_predicted = is_predicted
        self._claims = Claims(claims_folder(results)) if part.helps else None
        if self._claims is not None and not self._claims.are_exclusive:
            logger.warning(
                "%s: this file system has no locks; every process predicts its own part alone, and the same command "
                "with --continue and without sharing puts the tables together",
                results,
            )
            part, self._claims = dataclasses.replace(part, helps=False), None
        order = part.before_others(case_ids) if part.helps or part.count > 1 else self._jobs
        self._names = [name for name in order if name in self._jobs]
        #: Cases that are another process's to do.
        self.elsewhere = frozenset(case_ids) - frozenset(part.before_others(case_ids))
        self._part = part
        self._ended: set[str] = set()
        self._written = 0
        self._leaving = threading.Event()
        self._began = time.monotonic()

    @property
    def are_shared(self) -> bool:
        """Whether the end of the turns is the end of everybody's work."""
        return self._claims is not None

    @property
    def is_watched(self) -> bool:
        """Whether a bar is of use."""
        return sys.stderr.isatty() and logger.isEnabledFor(logging.INFO) and len(self) > 1

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[tuple[Case, Path]]:
        names: Iterator[str] = iter(self._names)
        if self._claims is not None:
            is_alone = orphaned() if self._part.local_rank else lambda: False  # nobody would end it then
            names = self._claims.hand_out(
                self._names,
                lambda name: self._is_predicted(*self._jobs[name]),
                lambda: self._leaving.is_set() or is_alone(),
                self._ended.__contains__,
            )
        for name in names:
            yield self._jobs[name]

    def end(self, case: Case, *, is_written: bool = False) -> None:
        """Says that the work on a case has come to its end."""
        self._written += is_written
        self._ended.add(case.id)

    def __enter__(self) -> "Turns":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leaving.set()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Of the processes that share the list, one at a time runs the block; the last finds the work of all."""
        if self._claims is None:
            yield
            return
        tables = Claims(self._claims.path / "tables")
        for _ in tables.hand_out(["all"], lambda _: False, lambda: False):
            yield
        tables.clear()
        self._claims.clear()

    def told(self, output: Path) -> str:
        """What has been done, when it is."""
        if self._claims is None:
            return f"{self._written} label map(s) written to {output}"
        seconds = time.monotonic() - self._began
        return (
            f"{len(self)} label map(s) written to {output} in {seconds:.0f} s, by all processes together; "
            f"{self._written} of them by this one"
        )
