"""A chain of rounds: goes on from its latest round, remembers its best, and knows when to stop."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from flaresemi.errors import SelectionError
from flaresemi.evaluation.summary import Summary, load_summary
from flaresemi.plans import Stage
from flaresemi.records import load_record, save_record
from flaresemi.rounds.round import Round
from flaresemi.rounds.state import load_state
from flaresemi.rounds.stopping import HeldOutDice, StopRule, Verdict, judge
from flaresemi.workspace import ModelFolder, Workspace

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """Where a chain stands.

    Attributes:
        rounds: Complete rounds, not counting the supervised start.
        mean_dice: Of the held-out real cases, from the supervised start on.
        verdict: After the last of them.
    """

    schema_version: int = SCHEMA_VERSION
    fold: str
    rounds: int
    mean_dice: tuple[float, ...]
    verdict: Verdict


class SelfTrainingChain:
    """The rounds of one fold.

    Args:
        workspace: Planned, prepared, with the fold trained.
        fold: A number: 'all' holds nothing out that could be judged.
        rule: When to stop.
        make_round: Makes the round of a number.
    """

    def __init__(self, workspace: Workspace, fold: str, rule: StopRule, make_round: Callable[[int], Round]) -> None:
        self.workspace = workspace
        self.fold = fold
        self.rule = rule
        self.make_round = make_round
        self.path = workspace.chain(fold) / "chain.json"

    @property
    def complete_rounds(self) -> int:
        """How many rounds are finished, from the first on."""
        number = 0
        while (state := load_state(self.workspace.round(self.fold, number + 1).state)) and state.next_step is None:
            number += 1
        return number

    def run_next(self) -> ChainState | None:
        """Runs, or goes on with, the round after the last complete one, and judges the chain.

        Returns:
            Where the chain stands now; None when training was asked to stop before the round was complete.
        """
        number = self.complete_rounds + 1
        if self.make_round(number).run() is None:
            return None
        return self.judge()

    def run_until_converged(self) -> ChainState | None:
        """Runs rounds until the stop rule ends the chain.

        Returns:
            The last state; None when training was asked to stop.
        """
        state: ChainState | None = self.judge() if self.complete_rounds else None
        while state is None or not state.verdict.stop:
            state = self.run_next()
            if state is None:
                return None
        return state

    def judge(self) -> ChainState:
        """Compares all complete rounds on the held-out real cases and keeps the verdict.

        Raises:
            SelectionError: a round has no validation, or validated other cases than the others.
        """
        rounds = self.complete_rounds
        summaries = [self._summary(number) for number in range(rounds + 1)]
        try:
            verdict = judge([held_out_dice(summary) for summary in summaries], self.rule)
        except ValueError as problem:
            raise SelectionError(
                f"the rounds cannot be compared: {problem}", where=self.path.parent,
                fix="validate them on the same cases: flaresemi_train FINE FOLD --continue",
            ) from None  # fmt: skip
        state = ChainState(
            fold=self.fold,
            rounds=rounds,
            mean_dice=tuple(summary.mean_dice or 0.0 for summary in summaries),
            verdict=verdict,
        )
        if not self.path.exists() or load_record(self.path, ChainState, error=SelectionError) != state:
            save_record(self.path, state)
        return state

    def model(self, number: int, stage: Stage) -> ModelFolder:
        """Models of a round; 0 is the supervised start."""
        if number == 0:
            return self.workspace.model(self.fold, stage)
        return self.workspace.round(self.fold, number).model(stage)

    def _summary(self, number: int) -> Summary:
        path: Path = self.model(number, Stage.FINE).validation / "summary.json"
        if not path.exists():
            raise SelectionError(
                f"round {number} was not validated", where=path,
                fix=f"flaresemi_train FINE {self.fold} --continue" if number == 0 else "run the round again",
            )  # fmt: skip
        return load_summary(path)


def held_out_dice(summary: Summary) -> HeldOutDice:
    """Dice by organ and case of a validation; organs that a case does not annotate are left out."""
    return {
        case.case_id: {name: organ.dice for name, organ in case.organs.items() if organ.dice is not None}
        for case in summary.cases
    }
