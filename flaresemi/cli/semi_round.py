"""flaresemi_semi_round: one round of self-training, or as many as it takes."""

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from flaresemi.cli.common import (
    StoppedEarly,
    StrictParser,
    add_dataset_options,
    add_field_option,
    add_time_limit_option,
    add_trainer_options,
    dataset_words,
    open_workspace,
    print_next,
    run,
)
from flaresemi.cli.launching import add_launch_options, launch_ranks, launched_at, lead_or_follow
from flaresemi.cli.mixing_options import add_mixing_options, given_mixing
from flaresemi.cli.numbers import count
from flaresemi.cli.output import require_printed
from flaresemi.cli.repeating import for_prediction, repeated
from flaresemi.cli.signals import StopSignals
from flaresemi.cli.training_options import add_tracking_option
from flaresemi.compute.crew import Crew
from flaresemi.compute.device import limit_threads, select_device
from flaresemi.compute.distributed import join_ranks, launched_ranks
from flaresemi.compute.sharding import joint_shard
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError
from flaresemi.locking import working_alone
from flaresemi.planning.decisions import usable_cases
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.rounds.chain import FEW_LABELS, ChainState, SelfTraining, usual_folds
from flaresemi.rounds.exporting import export_round
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

#: What a start was asked to do; how is said again in the next.
_NOT_AGAIN = (
    *("fold", "until_converged", "rounds", "final", "status", "report", "step", "shard"),
    *("export_labels", "export_which"),
)
_STOPPED = "stopped and saved; the same command goes on"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _semi_round(options, words), _parser(), words)


def _semi_round(options: argparse.Namespace, words: list[str]) -> None:
    limit_threads()
    looks = options.status or options.report or options.export_labels is not None
    ranks = launched_ranks()
    if (options.gpus > 1 or options.max_restarts > 0) and ranks is None and not looks:
        module, restarts = "flaresemi.cli.semi_round", options.max_restarts
        launch_ranks(module, words, gpus=options.gpus, max_restarts=restarts, go_on="the same command goes on")
        return
    workspace = open_workspace(options)
    with StopSignals(options.time_limit, began=launched_at()) as signals:
        if looks:
            if ranks is None or ranks.is_main:
                _look(options, _self_training(options, workspace, _execution(options, signals)))
        elif options.shard is not None:  # shards of the same labeling work side by side
            _run_step(options, _self_training(options, workspace, _execution(options, signals)))
        else:
            with join_ranks(select_device(options.device).type) as joined:
                how = _execution(options, signals, Crew(joined))
                lead_or_follow(how.crew, how, lambda: _lead(options, words, workspace, how))


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
        for fold in training.folds:
            alone.enter_context(working_alone(workspace.lock("rounds", f"fold_{fold}"), command))
        _run_rounds(options, training, command)


def _run_rounds(options: argparse.Namespace, training: SelfTraining, command: list[str]) -> None:
    if options.step is not None:
        _run_step(options, training)
        return
    if options.final:
        _train_final(options, training, command)
        return
    if options.until_converged:
        state = training.run_until_converged()
    else:
        state = training.run_next() if options.rounds is None else training.run_rounds(options.rounds)
    if state is None:
        raise StoppedEarly(_STOPPED)
    print(state.told)
    reports = [training.workspace.round(fold, state.rounds).report for fold in training.folds]
    if not all(path.exists() for path in reports):  # the start that finished the round was killed before them
        reports = training.write_reports()
    _print_reports(reports)
    if options.until_converged and state.verdict is not None and state.verdict.best_round > 0:
        _train_final(options, training, command)
        return
    _print_next(options, training, state)


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
    return ["flaresemi_semi_round", "--fold", *training.folds, *repeated(_parser(), options, without=_NOT_AGAIN)]


def _execution(options: argparse.Namespace, signals: StopSignals, crew: Crew | None = None) -> Execution:
    crew = crew or Crew()
    device = joint_shard(options.shard, launched_ranks()).device(options.device)
    track = getattr(options, "track", None)
    refuse_without_tracker(track or "none")
    asked = signals.requested
    return Execution(device=device, precision=options.precision, stop_requested=asked, crew=crew, track=track)


def _self_training(options: argparse.Namespace, workspace: Workspace, how: Execution) -> SelfTraining:
    try:
        config, rule = _round_config(options), StopRule(**_given(options, *_STOP))
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    folds = tuple(dict.fromkeys(options.fold)) if options.fold else usual_folds(workspace)

    def make_round(fold: str, number: int) -> Round:
        dataset = usable_cases(load_dataset(options.dataset), workspace)
        return Round(workspace, dataset, fold, number, config, how, peers=folds)

    return SelfTraining(workspace, folds, rule, make_round)


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
        state = load_state(training.workspace.round(fold, number).state)
        following = state.next_step if state else options.step
        print(f"fold {fold}, round {number}: done up to '{options.step}'; next comes '{following or 'the next round'}'")


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


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        "flaresemi_semi_round",
        "Label the unlabeled cases with a trained fold, select what can be trusted, train on it, judge. "
        "What is done already is not done again.",
    )
    add_dataset_options(parser)
    parser.add_argument(
        "--fold",
        nargs="+",
        metavar="FOLD",
        help="folds whose cases are held out to judge by; 'all' holds out none "
        f"[0; with fewer than {FEW_LABELS} labeled cases every fold]",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_launch_options(parser, "share the work among N GPUs of this machine")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="mixed precision")
    add_time_limit_option(parser)
    _add_actions(parser.add_argument_group("what to do"))
    _add_choices(parser)
    return parser


def _add_actions(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--until-converged", action="store_true", help="run round after round until the stop rule ends it"
    )
    what.add_argument("--rounds", type=count, metavar="N", help="run until N rounds are complete")
    what.add_argument(
        "--final",
        action="store_true",
        help="train the final models, on all labels and the best models' pseudo-labels "
        "(--until-converged does so at its end)",
    )
    what.add_argument("--status", action="store_true", help="print the progress of the chain, and do nothing else")
    what.add_argument(
        "--report", action="store_true", help="write the last complete round's page again, and do nothing else"
    )
    what.add_argument("--step", choices=STEPS, help="stop after this step of the round")
    what.add_argument(
        "--shard",
        metavar="I/N",
        help="label only this part of the unlabeled cases: 0/4, slurm (this task of a job "
        "array) or torchrun (this rank)",
    )
    what.add_argument(
        "--export-labels",
        type=Path,
        metavar="FOLDER",
        help="write the newest pseudo-labels as CASE.nii.gz on the grids of their images, and do nothing else",
    )
    what.add_argument(
        "--export-which", choices=["selected", "all"], default="selected", help="of which cases [selected]"
    )


def _preset(name: str) -> str:
    if name != "seed":
        return name
    logger.warning("--preset seed is deprecated and goes in 0.2: say --preset flaresemiseg")
    return "flaresemiseg"


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Fields of the records that decide a round; what is not given stays with its preset."""
    parser.add_argument(
        "--tta", action="store_true", default=argparse.SUPPRESS, help="label by the mean over mirrored images too"
    )
    parser.add_argument(
        "--ignore-contested",
        action="store_true",
        default=argparse.SUPPRESS,
        help="leave out the voxels of pseudo-labels on which snapshots of the models disagree",
    )
    parser.add_argument(
        "--teacher",
        metavar="MODEL",
        type=os.path.abspath,
        default=argparse.SUPPRESS,
        help="label with this model in the first round, nnU-Net's or another workspace's; organs are matched by name",
    )
    rule = parser.add_argument_group("selection", "what is not given has the default in brackets")
    defaults, round_defaults, stop_defaults = SelectionRule(), RoundConfig(), StopRule()
    rule.add_argument(
        "--preset",
        choices=list(PRESETS),
        type=_preset,
        default=argparse.SUPPRESS,
        help="flaresemiseg: whole cases, best half first; students from scratch, nothing pasted",
    )
    rule.add_argument("--select", choices=["case", "organ"], help="judge whole cases, or each organ on its own [organ]")

    add_field_option(
        rule, "organ_threshold", defaults, "organ: least predicted Dice, or agreement without a calibration"
    )
    add_field_option(rule, "organ_share", defaults, "organ: a lower threshold where fewer cases reach it")
    add_field_option(rule, "volume_factor", defaults, "organ: how far outside the labeled volumes is implausible")
    add_field_option(rule, "best_share", defaults, "case: share of the cases that the first round takes")
    add_field_option(rule, "case_threshold", defaults, "case: least score in later rounds")
    rule.add_argument(
        "--require-complete", action="store_true", default=argparse.SUPPRESS, help="case: only cases with every organ"
    )
    students = parser.add_argument_group("students")
    add_mixing_options(students)
    add_field_option(students, "start", round_defaults, "weights to start from", choices=["scratch", "previous"])
    add_field_option(students, "length", round_defaults, "iterations, relative to the supervised training")
    add_trainer_options(students)
    add_tracking_option(students, "keep their numbers, and figures of each round, as flaresemi_train [as supervised]")
    stop = parser.add_argument_group("stop rule")
    add_field_option(stop, "patience", stop_defaults, "rounds without an improvement before the chain ends")
    add_field_option(stop, "min_delta", stop_defaults, "mean Dice that counts as an improvement")
    add_field_option(stop, "max_rounds", stop_defaults, "most rounds")


if __name__ == "__main__":
    sys.exit(main())
