"""A training that shall take a given time: how many steps it has is decided again and again while it goes on."""

import bisect
import contextlib
import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Callable, Generator, Iterator

from flaresemi.compute.distributed import Ranks
from flaresemi.errors import CheckpointError
from flaresemi.networks.checkpoint import Checkpoint
from flaresemi.ranges import Iterations, Seconds
from flaresemi.records import from_plain, parse_json, to_plain
from flaresemi.training.config import Recipe
from flaresemi.training.schedule import Decision, Schedule

logger = logging.getLogger(__name__)

#: Steps that are timed before the first one counts, and the parts of the budget after which no more are, when two are
#: done and when one is. Chosen.
TIMED_STEPS = 6
_SLOW_START = 0.03
_VERY_SLOW_START = 0.15

#: More steps than any training has, for the loader of one whose number of steps may still change.
ENDLESS = 10**9

#: The shortest schedule: a start so slow that few steps seem to fit must not leave it without warm-up and epochs.
_LEAST_SCHEDULE = 100

#: Part of the time left that is kept free for validations and checkpoints as long as none was seen. Chosen.
_UNSEEN = 0.05

#: Parts of the budget: the least time between two decisions; by how much the end has to be off for one; how far apart
#: the looks at the clock lie that are kept; the least and the most time that the pace is measured over. Chosen.
_BETWEEN = 0.01
_WORTH = 0.01
_BETWEEN_MARKS = 0.0025
_LEAST_WINDOW = 0.02
_LONGEST_WINDOW = 0.25

#: The pace of fewer steps says nothing, unless they take long; and no training begins with fewer in view.
_FEW = 3

#: Where a state comes from, for messages.
_LATEST = "checkpoint_latest.pt"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BudgetState:
    """The state of a training with a budget, as a checkpoint keeps it.

    Attributes:
        spent_seconds: Of the budget.
        schedule_iterations: Length of the schedule; see `Schedule`.
        decisions: Those made so far.
    """

    spent_seconds: Seconds
    schedule_iterations: Iterations
    decisions: tuple[Decision, ...]


class TimeBudget:
    """Watches the clock of a training and says when its number of steps has to change.

    The future is taken to be like the past, over half as long a time as is left: a stall of a moment counts little
    while there is much to come, and near the end what counts is the present pace. Validations and checkpoints are
    counted apart, by how many are still to come.

    Args:
        seconds: The budget; infinite: there is none, and nothing is decided.
        now: Tells the seconds that this process has been running; any start.
        spent_seconds: Of the budget, by the processes before this one.
    """

    def __init__(self, seconds: float, now: Callable[[], float], spent_seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._now = now
        self._start = now() - spent_seconds
        self._aside: dict[str, list[float]] = {}
        self._aside_seconds = 0.0
        self._decided = -math.inf
        self._marks: list[tuple[int, float]] = []

    @property
    def decides(self) -> bool:
        """Whether there is a budget."""
        return math.isfinite(self.seconds)

    @property
    def spent_seconds(self) -> float:
        """How much of the budget is spent."""
        return self._now() - self._start

    def first_estimate(self, steps: Generator[object, None, None], ranks: Ranks) -> int:
        """How many steps fit into what is left, as it looks to the main process.

        Args:
            steps: Goes through the first steps of the training. It is closed where they take long.
            ranks: Who has to agree on that.
        """
        spent = [self.spent_seconds]
        with contextlib.closing(steps):
            for _ in steps:
                spent.append(self.spent_seconds)
                limit = _SLOW_START if len(spent) > 2 else _VERY_SLOW_START
                if ranks.any(spent[-1] - spent[0] > limit * self.seconds):
                    break
        # The first one pays for starting the loader, others for warming up.
        taken = [after - before for before, after in itertools.pairwise(spent)]
        fastest = sorted(taken[1:] or taken)[:3]
        step = sum(fastest) / len(fastest)
        left = max(self.seconds - self.spent_seconds, 0.0)
        return ranks.of_main(max(int(left * (1 - _UNSEEN) / max(step, 1e-6)), _FEW))

    def first_schedule(self, iterations: int, resolve: Callable[[int], Recipe]) -> Schedule:
        """The schedule of a training that begins with so many steps in view; later decisions stretch it.

        Args:
            resolve: A recipe for so many steps.
        """
        logger.info("%d steps fit into the time budget, as it looks now", iterations)
        if iterations >= _LEAST_SCHEDULE:
            return Schedule(resolve(iterations))
        return Schedule(resolve(_LEAST_SCHEDULE)).decided(0, iterations)

    @contextlib.contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Stands around what is no step: a `validation`, the end of another `epoch`, a `checkpoint`."""
        start = self._now()
        try:
            yield
        finally:
            taken = self._now() - start
            self._aside.setdefault(name, []).append(taken)
            self._aside_seconds += taken

    def decide(self, schedule: Schedule, iteration: int, validations: int) -> int:
        """The number of steps that the training shall have; 0: it stays as it is.

        Nothing is decided up to where a resumed training repeats what was decided before.

        Args:
            iteration: Steps done.
            validations: About how many a training has; see `Schedule`.
        """
        spent, total = self.spent_seconds, schedule.total_iterations
        step = self._step_seconds(iteration, total - iteration, spent)
        repeats = bool(schedule.decisions) and schedule.decisions[-1].iteration >= max(iteration, 1)
        if step is None or repeats or iteration >= total or spent - self._decided < _BETWEEN * self.seconds:
            return 0
        decided = iteration + self._steps_left(schedule, iteration, validations, step)
        if decided == total or abs(decided - total) * step <= _WORTH * self.seconds:
            return 0
        self._decided = spent
        logger.debug("iteration %d, %.1f of %g s: %d steps in all", iteration, spent, self.seconds, decided)
        return decided

    def state(self, schedule: Schedule) -> dict[str, str]:
        """The state for a checkpoint, as text; empty where nothing is decided."""
        if not self.decides:
            return {}
        state = BudgetState(
            spent_seconds=self.spent_seconds,
            schedule_iterations=schedule.recipe.total_iterations,
            decisions=schedule.decisions,
        )
        return {"budget": json.dumps(to_plain(state))}

    def resumed(self, checkpoint: Checkpoint) -> "TimeBudget":
        """The budget with what was spent before a checkpoint; where that is not known, nothing is decided any more.

        Raises:
            CheckpointError: what the checkpoint kept cannot be read.
        """
        if not self.decides:
            return self
        kept = _kept_state(checkpoint)
        if kept is None:
            logger.warning("this training was begun without a record of its time: it keeps its number of steps")
            return TimeBudget(math.inf, self._now)
        return TimeBudget(self.seconds, self._now, kept.spent_seconds + self.spent_seconds)

    def _step_seconds(self, iteration: int, steps_left: int, spent: float) -> float | None:
        """Seconds per step of late; None as long as too little was seen."""
        busy = spent - self._aside_seconds
        if not self._marks:  # the first step of a process pays for starting the loader
            self._marks = [(iteration, busy)]
            return None
        window = min(max((self.seconds - spent) / 2, _LEAST_WINDOW * self.seconds), _LONGEST_WINDOW * self.seconds)
        first_iteration, first_busy = next(
            (mark for mark in reversed(self._marks) if mark[1] <= busy - window), self._marks[0]
        )
        if busy - self._marks[-1][1] >= _BETWEEN_MARKS * self.seconds:
            self._marks = [mark for mark in self._marks if mark[1] >= first_busy] + [(iteration, busy)]
        steps, seconds = iteration - first_iteration, busy - first_busy
        if steps < 1 or seconds <= 0 or (steps < min(_FEW, steps_left) and seconds < _LEAST_WINDOW * self.seconds):
            return None
        return seconds / steps

    def _steps_left(self, schedule: Schedule, iteration: int, validations: int, step: float) -> int:
        """How many steps fit into what is left, with what comes between them; at least one."""
        end, left = schedule.total_iterations, self.seconds - self.spent_seconds
        validating = schedule.validations_done(end, validations) - schedule.validations_done(iteration, validations)
        to_come = {
            "validation": validating,
            "epoch": schedule.epochs_done(end) - schedule.epochs_done(iteration) - validating,
            "checkpoint": 2,  # the last snapshot and the state; of others there are few, or much time lies between them
        }
        if any(times and name not in self._aside for name, times in to_come.items()):
            left *= 1 - _UNSEEN
        taken = {name: self._aside[name][-1] if name in self._aside else 0.0 for name in to_come}

        def seconds(steps: int) -> float:
            # A step that passes several ends of epochs ends with one validation at most.
            return steps * step + sum(min(times, steps) * taken[name] for name, times in to_come.items())

        most = max(round(left / step), 1)
        return max(bisect.bisect_right(range(1, most + 1), left, key=seconds), 1)


def kept_schedule(latest: Checkpoint, resolve: Callable[[int], Recipe]) -> Schedule:
    """The schedule that a checkpoint knows of, where the record of the training is lost.

    Raises:
        CheckpointError: what the checkpoint kept cannot be read.
    """
    kept = _kept_state(latest)
    if kept is None:
        return Schedule(resolve(latest.total_iterations))
    return Schedule(resolve(kept.schedule_iterations), kept.decisions)


def _kept_state(checkpoint: Checkpoint) -> BudgetState | None:
    """The state that a checkpoint kept; None where its training had no budget, or is from before budgets were kept."""
    text = (checkpoint.training_state or {}).get("budget")
    if text is None:
        return None
    try:
        plain = parse_json(str(text))
    except ValueError as problem:
        raise CheckpointError(f"'budget' in it cannot be read: {problem}", where=_LATEST) from None
    return from_plain(BudgetState, plain, source=_LATEST, error=CheckpointError)
