"""flaresemi_doctor: what this machine offers, and what limits flaresemi on it, in one screen."""

import argparse
import collections
import os
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from flaresemi import __version__
from flaresemi.cli.common import EXIT_OK, EXIT_USER_ERROR, StrictParser, add_dataset_options, run, workspace_of
from flaresemi.cli.output import require_printed
from flaresemi.compute.checkup import Check, machine
from flaresemi.compute.device import limit_threads
from flaresemi.errors import FlaresemiError
from flaresemi.files import open_regular
from flaresemi.io.case_store import CaseStore
from flaresemi.networks.openvino import openvino_is_installed
from flaresemi.planning.decisions import load_decisions
from flaresemi.planning.splits import load_splits
from flaresemi.plans import Stage, load_fingerprint, load_plans
from flaresemi.records import load_record
from flaresemi.rounds.state import load_state
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import Workspace

_WIDTH = 120
_SHOWN_COMPLAINTS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 when there is a problem that would stop a training."""
    return run(_doctor, _parser(), argv)


def _doctor(options: argparse.Namespace) -> int:
    limit_threads()
    workspace = workspace_of(options)
    # Without -w a folder of that name need not be a workspace.
    is_meant = options.workspace is not None or workspace.plans.exists()
    print(f"flaresemi {__version__}")
    count = collections.Counter[str]()
    for check in _checks(workspace, is_meant):
        _print(check)
        count[check.verdict] += 1
    print(f"\n{count['problem']} problem(s) that would stop a training, {count['note']} note(s)")
    require_printed()
    return EXIT_USER_ERROR if count["problem"] else EXIT_OK


def _checks(workspace: Workspace, is_meant: bool) -> Iterator[Check]:
    yield from machine(workspace.root if is_meant else Path.cwd())
    yield _openvino()
    if is_meant:
        yield check_workspace(workspace)


def _print(check: Check) -> None:
    head = f"{check.verdict:<8} {check.name:<16} "
    indent = " " * len(head)
    lines = [head + check.value, *(f"{indent}-> {line}" for line in check.advice.splitlines())]
    for line in lines:  # paths stay whole, to be copied
        filled = textwrap.fill(line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        print(filled, flush=True)


def _openvino() -> Check:
    if openvino_is_installed():
        return Check("OpenVINO", "installed: predictions on a CPU are faster by it")
    advice = 'predictions on a CPU would be faster: pip install "flaresemi[openvino]"'
    return Check("OpenVINO", "not installed", "note", advice)


def check_workspace(workspace: Workspace) -> Check:
    """Whether a workspace can be written to, and whether this version reads what it holds; arrays are not read."""
    name, root = "workspace", workspace.root
    if not root.exists():
        return Check(name, f"{root} is not there yet: the first command makes it")
    if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
        advice = "change its permissions, or name another"
        return Check(name, f"{root} is not a folder that can be written to", "problem", advice)
    count, complaints = 0, []
    for read in _records(workspace):
        count += 1
        try:
            read()
        except FlaresemiError as error:
            complaints.append(" ".join(str(error).split()))
    if not complaints:
        return Check(name, f"{root}: {count} record(s) and model(s), all readable")
    value = f"{root}: {len(complaints)} of {count} record(s) and model(s) cannot be read"
    more = [f"and {len(complaints) - _SHOWN_COMPLAINTS} more"] if len(complaints) > _SHOWN_COMPLAINTS else []
    return Check(name, value, "problem", "\n".join([*complaints[:_SHOWN_COMPLAINTS], *more]))


def _records(workspace: Workspace) -> Iterable[Callable[[], object]]:
    """A reader for each record and for the head of each model of a workspace."""
    for path, load in (
        (workspace.plans, load_plans),
        (workspace.fingerprint, load_fingerprint),
        (workspace.splits, load_splits),
    ):
        if path.exists():
            yield partial(load, path)
    yield partial(load_decisions, workspace)
    for stage in Stage:
        store = CaseStore(workspace.preprocessed(stage))
        for case_id in store.case_ids():
            yield partial(store.open, case_id)
    for path in sorted(workspace.root.glob("rounds/fold_*/round_*/round.json")):
        yield partial(load_state, path)
    for path in sorted([*workspace.models.rglob("run.json"), *workspace.root.glob("rounds/**/run.json")]):
        yield partial(load_record, path, RunRecord)
        for model in sorted(path.parent.glob("*.pt")):
            yield partial(_refuse_truncated, model)


def _refuse_truncated(path: Path) -> None:
    # The directory of the archive stands at its end; reading all of it would take minutes for many models.
    with open(path, "rb", opener=open_regular) as file:
        is_whole = zipfile.is_zipfile(file)
    if not is_whole:
        raise FlaresemiError("truncated or no checkpoint", where=path, fix="copy or train it again")


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        "flaresemi_doctor",
        "Say what this machine offers and what limits flaresemi on it; with a workspace, whether it can be used.",
    )
    add_dataset_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
