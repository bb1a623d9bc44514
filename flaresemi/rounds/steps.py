"""The steps of a round: done once from the same inputs, gone on with where they were stopped."""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

from flaresemi.rounds.state import RoundState, StepState, save_state

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of a round.

    Attributes:
        name: As the state of the round knows it.
        inputs: Hash of all that decides its result, but for the real cases; to be asked once the steps before are done.
        cases: Hash of the real cases that decide its result, as they are prepared now.
        run: Does the work, or what is left of it; False when it was asked to stop.
        outputs: Whether all that it leaves is there.
        discard: Removes what must not be taken for its new result, before it is begun anew.
    """

    name: str
    inputs: Callable[[], str]
    cases: str
    run: Callable[[], bool]
    outputs: Callable[[], bool]
    discard: Callable[[], None] = lambda: None


def run_step(step: Step, state: RoundState, path: Path) -> RoundState:
    """Runs a step, unless it was done from the same inputs and its outputs are there.

    Args:
        step: The steps before it are done.
        state: Of the round.
        path: Where the state is kept: before the work begins, and when it ends.

    Returns:
        The state of the round now; the step is not done in it when it was asked to stop.
    """
    inputs, before = step.inputs(), state.steps.get(step.name)
    if before is not None and (before.inputs != inputs or before.cases not in ("", step.cases)):
        logger.warning("round %d: what '%s' was made from has changed: it is done again", state.round, step.name)
        before = None
    elif before is not None and before.done and step.outputs():
        logger.info("round %d: %s is done", state.round, step.name)
        return state
    if before is None:
        step.discard()
    now = StepState(inputs=inputs, cases=step.cases, seconds=before.seconds if before else 0.0)
    save_state(path, state.with_step(step.name, now))
    logger.info("round %d: %s", state.round, step.name)
    started = time.monotonic()
    is_done = step.run()
    now = dataclasses.replace(now, seconds=now.seconds + time.monotonic() - started, done=is_done)
    state = state.with_step(step.name, now)
    save_state(path, state)
    return state
