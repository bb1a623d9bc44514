"""flaresemi_review: the queue of cases that deserve a look, and a local web page on which to decide about them."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from flaresemi.cli.common import StrictParser, add_dataset_options, dataset_words, open_workspace, print_next, run
from flaresemi.cli.numbers import count
from flaresemi.cli.output import require_printed
from flaresemi.dataset import load_dataset
from flaresemi.errors import ConfigError, visible
from flaresemi.locking import working_alone
from flaresemi.planning.decisions import usable_cases
from flaresemi.planning.splits import load_splits
from flaresemi.review.corrections import import_corrections
from flaresemi.review.exchange import QUEUE_TABLE, export_queue
from flaresemi.review.material import Material
from flaresemi.web.running import refuse_without_server
from flaresemi.workspace import Workspace

logger = logging.getLogger("flaresemi.cli.review")  # also when run with python -m

_DEFAULT_PORT = 8650
_MOST = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _review(options, words), _parser(), words)


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        "flaresemi_review",
        "Review pseudo-labels on a local web page: which cases deserve a look and why; accept, reject, correct. "
        "The next round of flaresemi_semi_round uses what was decided. Only this machine can reach the page.",
    )
    add_dataset_options(parser)
    parser.add_argument("--fold", metavar="FOLD", help="chain to review [the first one with a round]")
    parser.add_argument(
        "--port", type=int, default=None, metavar="N", help=f"of the page [{_DEFAULT_PORT}, or a free one]"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="print the queue, and do nothing else")
    instead.add_argument(
        "--export-queue", type=Path, metavar="FOLDER",
        help="write the most urgent cases for 3D Slicer, ITK-SNAP or napari, and do nothing else",
    )  # fmt: skip
    instead.add_argument(
        "--import-corrections", type=Path, metavar="FOLDER",
        help="take label maps that were corrected elsewhere, and do nothing else",
    )  # fmt: skip
    parser.add_argument("--most", type=count, default=_MOST, metavar="N", help=f"cases to list or to export [{_MOST}]")
    parser.add_argument(
        "--by", metavar="NAME", help="who corrected what is imported; on the page, the name to begin with"
    )
    parser.add_argument(
        "--organs", nargs="+", metavar="ORGAN", help="organs that were looked at in what is imported [all]"
    )
    return parser


def _review(options: argparse.Namespace, words: list[str]) -> None:
    workspace = open_workspace(options)
    if not workspace.plans.exists():
        raise ConfigError(
            "this dataset has no plans yet", where=workspace.plans, fix="run flaresemi_plan_and_preprocess first"
        )
    if options.organs and not options.import_corrections:
        raise ConfigError("--organs goes with --import-corrections")
    fold = options.fold or _first_chain(workspace)
    material = Material(workspace, usable_cases(load_dataset(options.dataset), workspace), fold)
    if options.list:
        print(_listed(material, options.most))
        require_printed()
    elif options.export_queue is not None:
        number = export_queue(material, options.export_queue, options.most)
        print(f"{number} case(s) written to {options.export_queue}; why: {options.export_queue / QUEUE_TABLE}")
        print_next(
            ["flaresemi_review", *dataset_words(options), "--fold", fold, "--import-corrections",
             str(options.export_queue), "--by", "NAME"]
        )  # fmt: skip
    elif options.import_corrections is not None:
        _import(options, material, words)
    else:
        _serve(options, material, words)


def _first_chain(workspace: Workspace) -> str:
    """The first fold with a round, or else the first fold."""
    splits = load_splits(workspace.splits)
    folds = [*(str(number) for number in range(len(splits.folds))), "all"]
    return next((fold for fold in folds if workspace.round(fold, 1).state.is_file()), folds[0])


def _listed(material: Material, most: int) -> str:
    items, suggestions = material.queue()
    number = material.newest
    labels = f"pseudo-labels of round {number}" if number else "no pseudo-labels yet"
    lines = [f"fold {material.fold}, {labels}; {sum(bool(item.reasons) for item in items)} case(s) deserve a look"]
    for item in [item for item in items if item.reasons][:most]:
        lines.append(f"  {item.case_id} ({item.group})")
        lines += [f"    {reason.text}" for reason in item.reasons]
    if suggestions:
        lines.append("to label next, random among the unlike:")
        lines += [f"  {each.case_id} ({each.why})" for each in suggestions[:most]]
    return visible("\n".join(lines))


def _import(options: argparse.Namespace, material: Material, words: list[str]) -> None:
    if not options.by:
        raise ConfigError("who corrected them is not said", fix="--by NAME")
    with working_alone(material.workspace.lock("review"), ["flaresemi_review", *words]):
        taken = import_corrections(material, options.import_corrections, options.by, options.organs)
    for case_id, organs in taken.items():
        told = "; ".join(f"{name} {change}" for name, change in organs.items()) or "nothing differs"
        print(visible(f"{case_id}: {told}"))
    print(f"{len(taken)} correction(s) taken")
    print_next(["flaresemi_semi_round", *dataset_words(options), "--fold", material.fold])


def _serve(options: argparse.Namespace, material: Material, words: list[str]) -> None:
    refuse_without_server("review")
    from flaresemi.review.serving import serve

    def announce(address: str) -> None:
        print(f"open {address}\n(from elsewhere through a tunnel: ssh -L PORT:127.0.0.1:PORT HOST; Ctrl-C ends it)")
        require_printed()

    ports = (_DEFAULT_PORT, 0) if options.port is None else (options.port,)
    with working_alone(material.workspace.lock("review"), ["flaresemi_review", *words]):
        serve(material, ports, options.by or "", announce)


if __name__ == "__main__":
    sys.exit(main())
