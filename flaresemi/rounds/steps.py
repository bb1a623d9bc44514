"""The steps of a round: run once for the same inputs, resumed where they were stopped."""

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
        name: Its key in the state of the round.
        inputs: Computes the hash of everything that determines its result, except the real cases. The steps before it
            must be done.
        cases: Hash of the real cases that its result depends on, as they are prepared now.
        run: Does the work, or resumes it; False when it was asked to stop.
        outputs: Whether all of its outputs exist.
        refuse_foreign: Checks, before its first run, that nobody else's files are in the place of its outputs.
        discard: Removes outputs of other inputs that must not be mistaken for new ones.
    """

    name: str
    inputs: Callable[[], str]
    cases: str
    run: Callable[[], bool]
    outputs: Callable[[], bool]
    refuse_foreign: Callable[[], None] = lambda: None
    discard: Callable[[], None] = lambda: None


def run_step(step: Step, state: RoundState, path: Path) -> RoundState:
    """Runs a step, unless it was done with the same inputs and its outputs exist.

    Args:
        step: What to run; the steps before it must be done.
        state: The state of the round so far.
        path: The state file, written before the work starts and after it ends.

    Returns:
        The new state of the round, in which the step is not done if it was asked to stop.
    """
    inputs, before = step.inputs(), state.steps.get(step.name)
    if before is not None and (before.inputs != inputs or before.cases not in ("", step.cases)):
        logger.warning("round %d: the inputs of '%s' have changed: it is run again", state.round, step.name)
        before = None
    elif before is not None and before.done and step.outputs():
        logger.info("round %d: %s is done", state.round, step.name)
        return state
    if step.name not in state.steps:
        step.refuse_foreign()
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
