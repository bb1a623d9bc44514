"""Chains of rounds: resumed at the latest round, judged on held-out cases, ended by a stop rule."""

import dataclasses
import logging
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from flaresemi.errors import ConfigError, SelectionError, listed
from flaresemi.evaluation.paired import HeldOutDice
from flaresemi.evaluation.summary import Summary, load_summary
from flaresemi.planning.preparation import case_versions
from flaresemi.planning.splits import ALL, load_splits
from flaresemi.plans import Stage, load_plans
from flaresemi.ranges import Few, Share
from flaresemi.records import load_record, save_record
from flaresemi.rounds.final import train_final
from flaresemi.rounds.origin import refuse_other_teachers, taught_outside
from flaresemi.rounds.protection import vanishing_organs
from flaresemi.rounds.report.writing import write_report
from flaresemi.rounds.round import Round
from flaresemi.rounds.state import STEPS, RoundState, load_state
from flaresemi.rounds.stopping import StopRule, Verdict, judge
from flaresemi.rounds.tracking import track_round
from flaresemi.training.validation import judged_otherwise
from flaresemi.workspace import RoundFolder, Workspace

SCHEMA_VERSION = 1

#: Runs rounds of one number, each of its own chain, up to a step; False when they were asked to stop.
SideBySide = Callable[[Sequence[Round], str], bool]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChainState:
    """The state of the chains of some folds.

    Attributes:
        folds: The folds of the chains.
        rounds: Complete rounds, not counting the supervised start.
        mean_dice: Of the held-out real cases of all folds, from the supervised start on.
        verdict: After the last of them; None where nothing is held out (fold 'all').
        vanishing: Organs that the last of them is losing, by what is seen without held-out cases, each with the reason.
        taught_outside: A model from outside labeled the first round: nothing says what it was trained on.
    """

    schema_version: int = SCHEMA_VERSION
    folds: tuple[str, ...]
    rounds: Few
    mean_dice: tuple[Share, ...]
    verdict: Verdict | None
    vanishing: dict[str, str] = dataclasses.field(default_factory=dict)
    taught_outside: bool = False

    @property
    def told(self) -> str:
        """Where the chains stand, in words: scores, verdict, and organs that are vanishing."""
        if self.verdict is None:
            told = [f"{self.rounds} complete round{'' if self.rounds == 1 else 's'}; nothing is held out to judge by"]
        else:
            rounds = (
                f"{'start' if number == 0 else f'round {number}'} {dice:.4f}"
                for number, dice in enumerate(self.mean_dice)
            )
            told = [
                f"mean Dice of the held-out cases: {', '.join(rounds)}",
                f"{self.verdict.why}; best round: {self.verdict.best_round}"
                f"{'; the chain ends here' if self.verdict.stop else ''}",
                "the best of several rounds is an optimistic figure: it was chosen by the cases that it is measured on",
            ]
        if self.taught_outside and self.verdict is not None:
            told.append(
                "a model from outside labeled round 1, and nothing says what it was trained on: if held-out cases were "
                "part of it, the rounds look better than they are"
            )
        told += [f"{organ} is vanishing in round {self.rounds}: {why}" for organ, why in self.vanishing.items()]
        if self.vanishing:
            models = "the models of the round before" if self.rounds > 1 else "the supervised models"
            rule = "a next round teaches no pseudo-label of it, unless whole cases are selected"
            told.append(f"{rule}; {models} know it better")
        return "\n".join(told)


class SelfTraining:
    """The chains of one or more folds, judged together.

    Each fold has a chain of its own. The chains share neither pseudo-labels nor weights, so that no held-out label
    reaches a model that it judges.

    Args:
        workspace: Planned and prepared, with the folds trained.
        folds: Numbers; or 'all' alone, which holds nothing out and therefore cannot be judged.
        rule: The stop rule.
        make_round: Builds the round of a given fold and number.
        side_by_side: Runs given rounds of a number up to a step, in processes of their own; False when they were
            stopped. None: they are run here, one after the other.

    Raises:
        PlanError: there are no splits.
        ConfigError: there is no such fold, 'all' stands among others, or a case is held out in two of them.
    """

    def __init__(
        self,
        workspace: Workspace,
        folds: tuple[str, ...],
        rule: StopRule,
        make_round: Callable[[str, int], Round],
        side_by_side: SideBySide | None = None,
    ) -> None:
        if ALL in folds and len(folds) > 1:
            raise ConfigError("fold 'all' stands alone", fix="name numbered folds, or 'all'")
        self.workspace = workspace
        self.folds = folds
        self.rule = rule
        self.make_round = make_round
        self._run_all = side_by_side or _one_after_the_other
        self.path = workspace.verdict(folds)
        splits = load_splits(workspace.splits)
        if twice := splits.held_out_twice(folds):
            raise ConfigError(
                f"folds {', '.join(folds)} hold out the same cases: {listed(twice)}",
                where=workspace.splits,
                fix="a held-out case judges one chain: name folds that hold out different cases, or one: --fold 0",
            )
        self._held_out_ids = {fold: splits.fold(fold).validation for fold in folds}

    @property
    def complete_rounds(self) -> int:
        """The number of rounds that all chains have completed, counted from the first."""
        return min(self._complete(fold) for fold in self.folds)

    def _complete(self, fold: str) -> int:
        number = 0
        while self._is_complete(fold, number + 1):
            number += 1
        return number

    def _is_complete(self, fold: str, number: int) -> bool:
        """Whether all steps are done and the files that later rounds build on are still there."""
        folder = self.workspace.round(fold, number)
        state = load_state(folder.state)
        kept = (folder.scores, folder.selection, folder.model(Stage.FINE).final)
        is_done = state is not None and state.next_step is None and all(path.is_file() for path in kept)
        return is_done and not self._judged_otherwise(fold, number)

    def _judged_otherwise(self, fold: str, number: int) -> str:
        """Why a round's validation is not of its models on the held-out cases as they are now; empty where it is."""
        fine, coarse = (self.workspace.round_model(fold, number, stage) for stage in (Stage.FINE, Stage.COARSE))
        held_out = case_versions(self._held_out_ids[fold], self.workspace)
        return judged_otherwise(fine, held_out, coarse if load_plans(self.workspace.plans).two_stage else None)

    def run_next(self, last_step: str | None = None) -> ChainState | None:
        """Runs or resumes the round after the last complete one, judges it, and writes its report.

        Args:
            last_step: Stop after this step; None: run the whole round.

        Returns:
            The state of the chains; None when a round was asked to stop before its end.
        """
        refuse_other_teachers(self.workspace, self.folds, self.complete_rounds)
        number = self.judge().rounds + 1  # before days of work: the start may never have been validated
        rounds = [self.make_round(fold, number) for fold in self.folds]
        # All folds first: each selects by a calibration on the held-out cases of all of them.
        for step in dict.fromkeys((STEPS[0], last_step or STEPS[-1])):
            if not self._run_all(rounds, step):
                return None
        state = self.judge()
        if state.rounds == number:
            self.conclude(state)
        return state

    def run_one(self, fold: str, last_step: str | None = None) -> RoundState | None:
        """Runs or resumes the round of one chain, and judges nothing: the other chains are run elsewhere.

        Args:
            fold: Of the chain.
            last_step: Stop after this step, 'label' for as long as not all chains have been there; None: the last.

        Returns:
            The state of the round; None when it was asked to stop before its end.
        """
        refuse_other_teachers(self.workspace, self.folds, self.complete_rounds)
        number = self.judge(keep=False).rounds + 1
        return self.make_round(fold, number).run(last_step=last_step or STEPS[-1])

    def conclude(self, state: ChainState) -> list[Path]:
        """Has the figures of the last complete round of every chain kept by its tracker, and writes the reports.

        Args:
            state: As `judge` gives it.

        Returns:
            The reports, as `write_reports`.
        """
        for fold in self.folds if state.rounds else ():
            judged = state.mean_dice[state.rounds] if state.mean_dice else None
            track_round(self.make_round(fold, state.rounds), judged)
        return self.write_reports()

    def write_reports(self) -> list[Path]:
        """Writes the report of the last complete round of every chain from what is on disk, replacing an older one.

        Returns:
            The files, in the order of the folds; none before the first complete round.
        """
        state = self.judge()
        if not state.rounds:
            return []
        return [
            write_report(self.workspace, fold, state.rounds, rule=self.rule, verdict=state.verdict, folds=self.folds)
            for fold in self.folds
        ]

    def run_rounds(self, count: int) -> ChainState | None:
        """Runs rounds until `count` of them are complete; see `run_next`."""
        while self.complete_rounds < count:
            if self.run_next() is None:
                return None
        return self.judge()

    def run_until_converged(self) -> ChainState | None:
        """Runs rounds until the stop rule ends the chains.

        Returns:
            The final state; None when a round was asked to stop.

        Raises:
            ConfigError: nothing is held out.
        """
        if self.folds == (ALL,):
            raise ConfigError(
                "fold 'all' holds no case out that could say when to stop", fix="ask for a number: --rounds 2"
            )
        state = self.judge()
        while state.verdict is not None and not state.verdict.stop:
            following = self.run_next()
            if following is None:
                return None
            state = following
        return state

    def train_final(self) -> RoundFolder | None:
        """Trains the final models, on all labels and the pseudo-labels of the chains' best models.

        Returns:
            Their folder; None when training was asked to stop.

        Raises:
            SelectionError: no round was an improvement, so that the supervised models should be kept.
        """
        verdict = self.judge().verdict
        if verdict is None or verdict.best_round == 0:
            raise SelectionError(
                "no round was better than the supervised start",
                where=self.path,
                fix="keep the supervised models; on every label: flaresemi_train COARSE all, flaresemi_train FINE all",
            )
        refuse_other_teachers(self.workspace, self.folds, verdict.best_round)
        return train_final([self.make_round(fold, verdict.best_round + 1) for fold in self.folds])

    def judge(self, *, keep: bool = True) -> ChainState:
        """Compares all complete rounds on the held-out real cases.

        Args:
            keep: Save the verdict in the workspace.

        Raises:
            SelectionError: a round was not validated, or on other cases than the rest.
        """
        rounds = self.complete_rounds
        vanishing = [vanishing_organs(self.workspace, self.folds, number) for number in range(1, rounds + 1)]
        lost = vanishing[-1] if vanishing else {}
        outside = rounds > 0 and taught_outside(self.workspace, self.folds)
        state = ChainState(
            folds=self.folds, rounds=rounds, mean_dice=(), verdict=None, vanishing=lost, taught_outside=outside
        )
        if self.folds != (ALL,):
            held_out = [self._held_out(number) for number in range(rounds + 1)]
            try:
                verdict = judge(held_out, self.rule, vanishing)
            except ValueError as problem:
                raise SelectionError(
                    f"the rounds cannot be compared: {problem}",
                    where=self.path.parent,
                    fix="validate them on the same cases: flaresemi_train FINE FOLD --continue",
                ) from None
            state = dataclasses.replace(state, mean_dice=tuple(map(mean_dice, held_out)), verdict=verdict)
        if keep and self._kept() != state:
            save_record(self.path, state)
        return state

    def _kept(self) -> ChainState | None:
        """The saved state; None where the file is missing or damaged, since everything in it is computed again."""
        try:
            return load_record(self.path, ChainState, error=SelectionError)
        except SelectionError:
            return None

    def _held_out(self, number: int) -> HeldOutDice:
        """Scores of a round over all folds: each case is held out in exactly one of them."""
        return {
            case: scores for fold in self.folds for case, scores in held_out_dice(self._summary(fold, number)).items()
        }

    def _summary(self, fold: str, number: int) -> Summary:
        path: Path = self.workspace.round_model(fold, number, Stage.FINE).validation / "summary.json"
        if not path.exists():
            raise SelectionError(
                f"round {number} of fold {fold} was not validated",
                where=path,
                fix="run the round again" if number else self._training_told(fold),
            )
        if why := self._judged_otherwise(fold, number):
            raise SelectionError(
                f"round {number} of fold {fold} was validated {why}",
                where=path,
                fix=f"flaresemi_train FINE {fold} --continue validates it again",
            )
        return load_summary(path)

    def _training_told(self, fold: str) -> str:
        """The commands that train and validate the start of a chain, as far as that is missing."""
        is_trained = {stage: self.workspace.model(fold, stage).final.is_file() for stage in Stage}
        fine = f"flaresemi_train FINE {fold}{' --continue' if is_trained[Stage.FINE] else ''}"
        needs_coarse = load_plans(self.workspace.plans).two_stage and not is_trained[Stage.COARSE]
        commands = f"flaresemi_train COARSE {fold}, then {fine}" if needs_coarse else fine
        return commands if is_trained[Stage.FINE] else f"{commands}; or name folds that are trained with --fold"


def _one_after_the_other(rounds: Sequence[Round], last_step: str) -> bool:
    return all(round.run(last_step=last_step) is not None for round in rounds)


def mean_dice(held_out: HeldOutDice) -> float:
    """Mean over the organs of their mean over the cases, as in a summary; 0 where nothing was scored."""
    by_organ: dict[str, list[float]] = {}
    for scores in held_out.values():
        for organ, dice in scores.items():
            by_organ.setdefault(organ, []).append(dice)
    return statistics.mean(statistics.mean(values) for values in by_organ.values()) if by_organ else 0.0


def held_out_dice(summary: Summary) -> HeldOutDice:
    """Dice by organ and case of a validation; organs that a case does not annotate are left out."""
    return {
        case.case_id: {name: organ.dice for name, organ in case.organs.items() if organ.dice is not None}
        for case in summary.cases
    }
