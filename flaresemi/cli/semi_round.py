"""flaresemi_semi_round: one round of self-training, or as many as it takes."""

import argparse
import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flaresemi.cli.chains import Chains, batch_sizes, most_gpus
from flaresemi.cli.common import StoppedEarly, dataset_words, flag_of, open_workspace, print_next, run
from flaresemi.cli.launching import launch_ranks, launched_at, lead_or_follow, orphaned
from flaresemi.cli.mixing_options import given_mixing
from flaresemi.cli.output import require_printed
from flaresemi.cli.repeating import for_prediction, repeated
from flaresemi.cli.round_options import NOT_AGAIN, round_parser
from flaresemi.cli.signals import StopSignals
from flaresemi.compute.crew import Crew
from flaresemi.compute.device import limit_threads, select_device
from flaresemi.compute.distributed import join_ranks, launched_ranks
from flaresemi.compute.sharding import joint_shard
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError
from flaresemi.locking import working_alone
from flaresemi.planning.decisions import usable_cases
from flaresemi.plans import Stage
from flaresemi.rounds.chain import ChainState, SelfTraining, SideBySide
from flaresemi.rounds.exporting import export_round
from flaresemi.rounds.folds import usual_folds
from flaresemi.rounds.pieces import Execution
from flaresemi.rounds.round import Round
from flaresemi.rounds.state import PRESETS, STEPS, RoundConfig, load_state
from flaresemi.rounds.stopping import StopRule
from flaresemi.training.augmentation import strength_of
from flaresemi.training.tracking import refuse_without_tracker
from flaresemi.training.trainers import trainer_class
from flaresemi.workspace import Workspace

logger = logging.getLogger("flaresemi.cli.semi_round")  # also when run with python -m

#: Options that are fields of a record, and stand among the options only if they were given.
_RULE = ("organ_threshold", "organ_share", "volume_factor", "best_share", "case_threshold", "require_complete")
_STUDENTS = ("start", "length", "tta", "ignore_contested", "teacher", "trainer", "trainer_settings")
_STOP = ("patience", "min_delta", "max_rounds")

_GO_ON = "the same command goes on"
_STOPPED = f"stopped and saved; {_GO_ON}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _semi_round(options, words), round_parser(), words)


def _semi_round(options: argparse.Namespace, words: list[str]) -> None:
    limit_threads()
    _refuse_unfit(options)
    looks = options.status or options.report or options.export_labels is not None
    ranks, began = launched_ranks(), launched_at()
    workspace = open_workspace(options)
    if (options.gpus > 1 or options.max_restarts > 0) and ranks is None and not looks:
        if options.gpus > 1 and _divides(options) and len(_folds(options, workspace)) > 1:
            _run_side_by_side(options, words, workspace)
        else:
            _launch(options, words, began)
        return
    with StopSignals(options.time_limit, began=began) as signals:
        if looks:
            if ranks is None or ranks.is_main:
                _look(options, _self_training(options, workspace, _execution(options, signals.requested)))
        elif options.shard is not None:  # shards of the same labeling work side by side
            _run_step(options, _self_training(options, workspace, _execution(options, signals.requested)))
        else:
            is_alone = orphaned() if began is not None and ranks is None else lambda: False
            with join_ranks(select_device(options.device).type) as joined:
                how = _execution(options, lambda: signals.requested() or is_alone(), Crew(joined))
                lead_or_follow(how.crew, how, lambda: _lead(options, words, workspace, how))


def _refuse_unfit(options: argparse.Namespace) -> None:
    others = ("until_converged", "final", "shard", "status", "report", "export_labels")
    if options.chain is not None and (given := [name for name in others if getattr(options, name)]):
        raise ConfigError(
            f"--chain runs one round of one chain, which does not go with {flag_of(given[0])}",
            fix="leave one of them out",
        )


def _divides(options: argparse.Namespace) -> bool:
    """Whether what is asked for can be divided by folds."""
    return not (options.final or options.shard is not None or options.chain is not None)


def _launch(options: argparse.Namespace, words: list[str], began: float | None) -> None:
    module, restarts = "flaresemi.cli.semi_round", options.max_restarts
    launch_ranks(module, words, gpus=options.gpus, max_restarts=restarts, go_on=_GO_ON, began=began)


def _look(options: argparse.Namespace, training: SelfTraining) -> None:
    """What prints or writes what is there, and does nothing else."""
    if options.status:
        print(_status(training, training.workspace))
        require_printed()
    elif options.report:
        _print_reports(training.write_reports())
    else:
        _export(options, training)


def _lead(options: argparse.Namespace, words: list[str], workspace: Workspace, how: Execution) -> None:
    """The work of the first process of a launch, or of the only one."""
    training, command = _self_training(options, workspace, how), ["flaresemi_semi_round", *words]
    with contextlib.ExitStack() as alone:
        for fold in training.folds if options.chain is None else [options.chain]:
            alone.enter_context(working_alone(workspace.lock("rounds", f"fold_{fold}"), command))
        if options.chain is not None:
            _run_chain(options, training)
        elif _run_rounds(options, training):
            _train_final(options, training, command)


def _run_side_by_side(options: argparse.Namespace, words: list[str], workspace: Workspace) -> None:
    """The work of the process that has others run the chains, each on GPUs of its own, and judges them together."""
    began = time.monotonic()
    with StopSignals(options.time_limit, began=began) as signals:
        chains = Chains(options, began=began, stop_requested=signals.requested)
        training = _self_training(options, workspace, _execution(options, signals.requested), chains)
        of_folds = workspace.lock("rounds", f"folds_{'_'.join(training.folds)}")
        with working_alone(of_folds, ["flaresemi_semi_round", *words]):
            is_due = _run_rounds(options, training)
            if is_due:  # one training, for all GPUs among which its batch divides
                options.gpus = most_gpus(batch_sizes(training.make_round(training.folds[0], 1)), options.gpus)
    if is_due:
        _launch(options, [*_again(options, training)[1:], "--final"], began)


def _run_chain(options: argparse.Namespace, training: SelfTraining) -> None:
    """The current round of one chain."""
    fold, number = options.chain, training.complete_rounds + 1
    if fold not in training.folds:
        raise ConfigError(
            f"--chain {fold} is none of the folds {', '.join(training.folds)}", fix="name all of them: --fold 0 1 2"
        )
    if options.rounds is not None and number > options.rounds:
        print(f"all chains have completed {number - 1} round(s)")
    elif training.run_one(fold, options.step) is None:
        raise StoppedEarly(_STOPPED)
    else:
        print(_done(training.workspace, fold, number, options.step or STEPS[-1]))
    if launched_at() is None:
        is_last = options.step in (None, STEPS[-1])
        print_next([*_again(options, training), *([] if is_last else ["--chain", fold])])


def _run_rounds(options: argparse.Namespace, training: SelfTraining) -> bool:
    """Runs what is asked for; whether the final models come next."""
    if options.final:
        return True
    if options.step is not None:
        _run_step(options, training)
        return False
    if options.until_converged:
        state = training.run_until_converged()
    else:
        state = training.run_next() if options.rounds is None else training.run_rounds(options.rounds)
    if state is None:
        raise StoppedEarly(_STOPPED)
    print(state.told)
    reports = [training.workspace.round(fold, state.rounds).report for fold in training.folds]
    if not all(path.exists() for path in reports):  # the chains were run by hand, or a kill came before them
        reports = training.conclude(state)
    _print_reports(reports)
    if options.until_converged and state.verdict is not None and state.verdict.best_round > 0:
        return True
    _print_next(options, training, state)
    return False


def _print_reports(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"report: {path}")


def _train_final(options: argparse.Namespace, training: SelfTraining, command: list[str]) -> None:
    with working_alone(training.workspace.lock("rounds", "final"), command):
        folder = training.train_final()
    if folder is None:
        raise StoppedEarly(_STOPPED)
    print("final models: trained on all labels and pseudo-labels; nothing was held out to score them on")
    _print_prediction(options, ["-m", str(folder.root)])


def _print_next(options: argparse.Namespace, training: SelfTraining, state: ChainState) -> None:
    """Prints the command that usually comes next."""
    verdict = state.verdict
    if verdict is None:
        newest = training.workspace.round_model(training.folds[0], state.rounds, Stage.FINE).root.parent
        _print_prediction(options, ["-m", str(newest)])
    elif not verdict.stop:
        print_next(_again(options, training))
    elif verdict.best_round > 0:
        print_next([*_again(options, training), "--final"])
    else:
        _print_prediction(options, dataset_words(options))


def _print_prediction(options: argparse.Namespace, models: list[str]) -> None:
    print_next(["flaresemi_predict", "-i", "IMAGES", "-o", "PREDICTIONS", *models, *for_prediction(options)])


def _again(options: argparse.Namespace, training: SelfTraining) -> list[str]:
    """The command that continues with the same options."""
    return ["flaresemi_semi_round", "--fold", *training.folds, *repeated(round_parser(), options, without=NOT_AGAIN)]


def _execution(options: argparse.Namespace, asked: Callable[[], bool], crew: Crew | None = None) -> Execution:
    crew, track = crew or Crew(), getattr(options, "track", None)
    device = crew.ranks.device(joint_shard(options.shard, launched_ranks()).device(options.device))
    refuse_without_tracker(track or "none")
    return Execution(device=device, precision=options.precision, stop_requested=asked, crew=crew, track=track)


def _folds(options: argparse.Namespace, workspace: Workspace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(options.fold)) if options.fold else usual_folds(workspace)


def _self_training(
    options: argparse.Namespace, workspace: Workspace, how: Execution, chains: SideBySide | None = None
) -> SelfTraining:
    try:
        config, rule = _round_config(options), StopRule(**_given(options, *_STOP))
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    folds = _folds(options, workspace)

    def make_round(fold: str, number: int) -> Round:
        dataset = usable_cases(load_dataset(options.dataset), workspace)
        return Round(workspace, dataset, fold, number, config, how, peers=folds)

    return SelfTraining(workspace, folds, rule, make_round, chains)


def _round_config(options: argparse.Namespace) -> RoundConfig:
    """The options, on top of what the preset says."""
    usual = PRESETS[getattr(options, "preset", "default")]
    if "trainer" in options:
        trainer_class(options.trainer)  # now, and not after the pool is labeled
    if options.__dict__.get("pseudo_augmentation", "none") != "none":
        strength_of(options.pseudo_augmentation)
    rule = {"rule": options.select} if options.select else {}
    return dataclasses.replace(
        usual,
        selection=dataclasses.replace(usual.selection, **rule, **_given(options, *_RULE)),
        mixing=dataclasses.replace(usual.mixing, **given_mixing(options)),
        **_given(options, *_STUDENTS),
    )


def _given(options: argparse.Namespace, *names: str) -> dict:
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _run_step(options: argparse.Namespace, training: SelfTraining) -> None:
    """One step of the current round, or one shard of its labeling."""
    if options.shard is not None and options.step not in (None, "label"):
        raise ConfigError("only labeling can be divided: --shard goes with --step label")
    number = training.complete_rounds + 1
    if options.shard is not None:
        part = joint_shard(options.shard, launched_ranks())
        for fold in training.folds:
            if not training.make_round(fold, number).label(part):
                raise StoppedEarly(_STOPPED)
        if part.speaks:
            print_next(_again(options, training))
        return
    if training.run_next(options.step) is None:
        raise StoppedEarly(_STOPPED)
    for fold in training.folds:
        print(_done(training.workspace, fold, number, options.step))


def _done(workspace: Workspace, fold: str, number: int, step: str) -> str:
    state = load_state(workspace.round(fold, number).state)
    following = state.next_step if state else step
    return f"fold {fold}, round {number}: done up to '{step}'; next comes '{following or 'the next round'}'"


def _export(options: argparse.Namespace, training: SelfTraining) -> None:
    """Writes the newest pseudo-labels of every chain as files."""
    step = "select" if options.export_which == "selected" else "label"
    for fold in training.folds:
        number = training.complete_rounds + 1
        state = load_state(training.workspace.round(fold, number).state)
        if state is None or step not in state.steps or not state.steps[step].done:
            number -= 1
        if number == 0:
            raise ConfigError(
                "there are no pseudo-labels to export yet",
                where=training.workspace.chain(fold),
                fix=f"flaresemi_semi_round --step {step} makes them",
            )
        folder = options.export_labels / f"fold_{fold}" if len(training.folds) > 1 else options.export_labels
        count = export_round(training.make_round(fold, number), folder, selected_only=step == "select")
        print(f"fold {fold}, round {number}: {count} label map(s) written to {folder}")


def _status(training: SelfTraining, workspace: Workspace) -> str:
    complete = training.complete_rounds
    lines = [f"{complete} complete round{'' if complete == 1 else 's'}"]
    if complete:
        lines.append(training.judge(keep=False).told)
    for fold in training.folds:
        place = f"fold {fold}, round {complete + 1}"
        state = load_state(workspace.round(fold, complete + 1).state)
        if state is None:
            lines.append(f"{place}: not begun")
            continue
        for name in STEPS:
            step = state.steps.get(name)
            stands = "not begun" if step is None else "done" if step.done else "begun"
            lines.append(f"{place}: {name}: {stands}" + (f", {step.seconds:.0f} s" if step else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
