"""The chains of several folds in processes of their own, each on some of the GPUs."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence

from flaresemi.cli.repeating import repeated
from flaresemi.cli.round_options import NOT_AGAIN, round_parser
from flaresemi.cli.side_by_side import all_done, places, side_by_side
from flaresemi.rounds.round import Round

logger = logging.getLogger("flaresemi.cli.semi_round")


class Chains:
    """Runs rounds of several folds side by side: `rounds.chain.SideBySide`.

    Each chain has as many GPUs as the others, as far as its batch divides among them; where there are fewer GPUs than
    chains, they take turns. The processes are `flaresemi_semi_round --chain`, which judge nothing.

    Args:
        options: Of the command.
        began: When it began, as `time.monotonic` has it.
        stop_requested: Polled; True has all chains save and stop.
    """

    def __init__(self, options: argparse.Namespace, *, began: float, stop_requested: Callable[[], bool]) -> None:
        self._options = options
        self._began = began
        self._stop_requested = stop_requested

    def __call__(self, rounds: Sequence[Round], last_step: str) -> bool:
        """Runs the rounds, all of one number, up to a step; False when they were stopped.

        Raises:
            FlaresemiError: some have failed, which the others do not end with.
        """
        gpus, number = self._options.gpus, rounds[0].number
        each = most_gpus(batch_sizes(rounds[0]), max(gpus // len(rounds), 1))
        count = min(len(rounds), gpus // each)
        logger.info(
            "round %d, up to '%s': %d chains, %d at a time, on %d GPU(s) or processes each%s",
            *(number, last_step, len(rounds), count, each),
            f"; {gpus - count * each} have nothing to do" if gpus > count * each else "",
        )
        commands = {f"fold {round.fold}": self._command(round, rounds, last_step, each) for round in rounds}
        at = places(count, each, self._options.device)
        endings = side_by_side(commands, at, began=self._began, stop_requested=self._stop_requested)
        return all_done(endings, "the same command goes on with what is missing")

    def _command(self, round: Round, rounds: Sequence[Round], last_step: str, gpus: int) -> list[str]:
        options = self._options
        words = repeated(round_parser(), options, without=(*NOT_AGAIN, "gpus"))
        words += [f"--{name}" for name in ("quiet", "verbose") if getattr(options, name)]
        words += ["--fold", *(each.fold for each in rounds), "--chain", round.fold, "--rounds", str(round.number)]
        words += ["--step", last_step, "--gpus", str(gpus)]
        return [sys.executable, "-m", "flaresemi.cli.semi_round", *words]


def batch_sizes(round: Round) -> list[int]:
    """Of the students of a round, over all processes."""
    plans = [round.plans.stage(stage) for stage in round.stages]
    return [round.training_config(plan.stage).batch_size or plan.batch_size for plan in plans]


def most_gpus(batches: Sequence[int], limit: int) -> int:
    """The largest number of GPUs, up to a limit, among which batches of these sizes divide."""
    return next(count for count in range(limit, 0, -1) if not any(batch % count for batch in batches))
