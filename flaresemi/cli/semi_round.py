"""flaresemi_semi_round: one round of self-training, or as many as it takes."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence

from flaresemi.cli.common import (
    StoppedEarly,
    StrictParser,
    add_dataset_options,
    dataset_words,
    print_next,
    run,
    workspace_of,
)
from flaresemi.cli.signals import StopSignals
from flaresemi.compute.device import select_device
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError
from flaresemi.planning.decisions import usable_cases
from flaresemi.plans import Stage
from flaresemi.pseudolabels.selecting import SelectionRule
from flaresemi.rounds.chain import ChainState, SelfTrainingChain
from flaresemi.rounds.round import Round
from flaresemi.rounds.state import STEPS, RoundConfig, load_state
from flaresemi.rounds.stopping import StopRule
from flaresemi.selection import Rule
from flaresemi.workspace import Workspace

logger = logging.getLogger("flaresemi.cli.semi_round")  # also when run with python -m

_SHARD = re.compile(r"(\d+)/(\d+)")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(_semi_round, _parser(), argv)


def _semi_round(options: argparse.Namespace) -> None:
    workspace = workspace_of(options)
    with StopSignals() as signals:
        chain = _chain(options, workspace, signals)
        if options.status:
            print(_status(chain, workspace))
            return
        if options.step is not None or options.shard is not None:
            _run_step(options, chain)
            return
        state = chain.run_until_converged() if options.until_converged else chain.run_next()
    if state is None:
        raise StoppedEarly("stopped and saved; the same command goes on")
    print(_told(state))
    if state.verdict.stop:
        best = chain.model(state.verdict.best_round, Stage.FINE).root.parent
        print_next(["flaresemi_predict", "-i", "IMAGES", "-o", "PREDICTIONS", "-m", str(best)])
    else:
        print_next(["flaresemi_semi_round", *dataset_words(options), "--fold", options.fold])


def _chain(options: argparse.Namespace, workspace: Workspace, signals: StopSignals) -> SelfTrainingChain:
    try:
        config, rule = _round_config(options), StopRule(**_given(options, "patience", "min_delta", "max_rounds"))
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    device = select_device(options.device)

    def make_round(number: int) -> Round:
        dataset = usable_cases(load_dataset(options.dataset), workspace)
        return Round(
            workspace, dataset, options.fold, number, config,
            device=device, precision=options.precision, stop_requested=signals.requested,
        )  # fmt: skip

    return SelfTrainingChain(workspace, options.fold, rule, make_round)


def _round_config(options: argparse.Namespace) -> RoundConfig:
    """The options, on top of what the preset says."""
    thresholds = _given(options, "best_share", "case_threshold", "require_complete", "organ_threshold", "volume_factor")
    rule: Rule = options.select or ("case" if options.preset == "seed" else "organ")
    choices = _given(options, "pseudo_share", "pseudo_augmentation", "start", "length")
    return RoundConfig(selection=SelectionRule(rule=rule, **thresholds), **choices)


def _given(options: argparse.Namespace, *names: str) -> dict:
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _run_step(options: argparse.Namespace, chain: SelfTrainingChain) -> None:
    """One step of the current round, or one shard of its labeling."""
    if options.shard is not None and options.step not in (None, "label"):
        raise ConfigError("only labeling can be divided: --shard goes with --step label")
    round = chain.make_round(chain.complete_rounds + 1)
    if options.shard is not None:
        round.label(*options.shard)
        print_next(["flaresemi_semi_round", *dataset_words(options), "--fold", options.fold])
        return
    state = round.run(last_step=options.step)
    if state is None:
        raise StoppedEarly("stopped and saved; the same command goes on")
    print(f"round {round.number}: done up to '{options.step}'; next comes '{state.next_step or 'the next round'}'")


def _status(chain: SelfTrainingChain, workspace: Workspace) -> str:
    complete = chain.complete_rounds
    lines = [f"fold {chain.fold}: {complete} complete round{'' if complete == 1 else 's'}"]
    if complete:
        lines.append(_told(chain.judge()))
    state = load_state(workspace.round(chain.fold, complete + 1).state)
    if state is None:
        lines.append(f"round {complete + 1}: not begun")
    else:
        for name in STEPS:
            step = state.steps.get(name)
            stands = "not begun" if step is None else "done" if step.done else "begun"
            lines.append(f"round {complete + 1}: {name}: {stands}" + (f", {step.seconds:.0f} s" if step else ""))
    return "\n".join(lines)


def _told(state: ChainState) -> str:
    rounds = ", ".join(
        f"{'start' if number == 0 else f'round {number}'} {dice:.4f}" for number, dice in enumerate(state.mean_dice)
    )
    return (
        f"mean Dice of the held-out cases: {rounds}\n"
        f"{state.verdict.why}; best round: {state.verdict.best_round}"
        f"{'; the chain ends here' if state.verdict.stop else ''}\n"
        "the best of several rounds is an optimistic figure: it was chosen by the cases that it is measured on"
    )


def _shard(text: str) -> tuple[int, int]:
    match = _SHARD.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a shard; write 0/4, 1/4, 2/4 or 3/4 for four of them")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        "flaresemi_semi_round",
        "Label the unlabeled cases with a trained fold, select what can be trusted, train on it, judge. "
        "What is done already is not done again.",
    )
    add_dataset_options(parser)
    parser.add_argument("--fold", default="0", help="the chain's fold: its cases judge, and are never trained on [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"], help="mixed precision")
    what = parser.add_argument_group("what to do")
    what.add_argument("--until-converged", action="store_true", help="go on, round after round, by the stop rule")
    what.add_argument("--status", action="store_true", help="say where the chain stands, and do nothing")
    what.add_argument("--step", choices=STEPS, help="stop after this step of the round")
    what.add_argument("--shard", type=_shard, metavar="I/N", help="label only this part of the unlabeled cases")
    rule = parser.add_argument_group("selection", "what is not given has the default in brackets")
    defaults, round_defaults, stop_defaults = SelectionRule(), RoundConfig(), StopRule()
    rule.add_argument(
        "--preset", choices=["default", "seed"], default="default", help="seed: whole cases, best half first"
    )
    rule.add_argument("--select", choices=["case", "organ"], help="judge whole cases, or each organ on its own [organ]")

    def add(group: argparse._ArgumentGroup, flag: str, defaults: object, text: str, **settings: object) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        value = getattr(defaults, name)
        kind = {} if "choices" in settings else {"type": type(value)}
        group.add_argument(flag, default=argparse.SUPPRESS, help=f"{text} [{value}]", **kind, **settings)  # type: ignore[arg-type]

    add(rule, "--organ-threshold", defaults, "organ: least predicted Dice, or agreement without a calibration")
    add(rule, "--volume-factor", defaults, "organ: how far outside the labeled volumes is implausible")
    add(rule, "--best-share", defaults, "case: share of the cases that the first round takes")
    add(rule, "--case-threshold", defaults, "case: least score in later rounds")
    rule.add_argument(
        "--require-complete", action="store_true", default=argparse.SUPPRESS, help="case: only cases with every organ"
    )
    students = parser.add_argument_group("students")
    add(students, "--pseudo-share", round_defaults, "share of the patches from pseudo-labeled cases")
    add(
        students, "--pseudo-augmentation", round_defaults, "strength for pseudo-labeled cases",
        choices=["none", "standard", "strong"],
    )  # fmt: skip
    add(students, "--start", round_defaults, "weights to start from", choices=["scratch", "previous"])
    add(students, "--length", round_defaults, "iterations, relative to the supervised training")
    stop = parser.add_argument_group("stop rule")
    add(stop, "--patience", stop_defaults, "rounds without an improvement before the chain ends")
    add(stop, "--min-delta", stop_defaults, "mean Dice that counts as an improvement")
    add(stop, "--max-rounds", stop_defaults, "most rounds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
