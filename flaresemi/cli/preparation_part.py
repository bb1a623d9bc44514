"""`flaresemi_plan_and_preprocess --shard`: a part of the cases, prepared by plans that are there already."""

import argparse
import logging
import shlex
import time
from collections.abc import Sequence

from flaresemi.cli.common import print_next
from flaresemi.cli.repeating import repeated
from flaresemi.compute.distributed import launched_ranks
from flaresemi.compute.sharding import joint_shard
from flaresemi.dataset import Dataset
from flaresemi.errors import ConfigError, DatasetError, listed
from flaresemi.planning.decisions import usable_cases
from flaresemi.planning.inspection import not_inspected
from flaresemi.planning.preparation import prepare_part
from flaresemi.plans import load_plans
from flaresemi.workspace import Workspace

logger = logging.getLogger("flaresemi.cli.plan_and_preprocess")

#: Options that decide something, which one process does for all.
_DECIDE = (
    *("replan", "check_only", "plan_only", "skip_bad_cases", "fix_geometry", "keep_plans", "folds", "splits", "seed"),
    *("gpu_memory_gib", "network", "network_arguments", "preset", "stages"),
)

#: What these are where they are not given.
_AUTO = ("preset", "stages")


def preparing_again(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The command that prepares what is missing, once it is planned: what has decided the plans is not said again."""
    others = vars(options).keys() - {"dataset", "workspace", "with_test", "workers"}
    return ["flaresemi_plan_and_preprocess", *repeated(parser, options, without=tuple(others))]


def prepare_as_part(
    options: argparse.Namespace, found: Dataset, workspace: Workspace, this_again: Sequence[str]
) -> None:
    """Prepares what this process takes of the cases, beside others.

    Args:
        options: Of the command.
        found: The dataset as it is.
        workspace: In which one process has looked into all cases and planned.
        this_again: The command that does what is missing and puts the results together.

    Raises:
        ConfigError: an option would decide something, or there are no plans.
        FlaresemiError: cases were not looked into, or could not be prepared.
    """
    part = joint_shard(options.shard, launched_ranks())
    first = [*this_again, "--plan-only"]
    others = {name: getattr(options, name, None) for name in _DECIDE}
    if given := [name for name, value in others.items() if value and not (name in _AUTO and value == "auto")]:
        flag = f"--{given[0].replace('_', '-')}"
        what = f"--shard prepares by the plans that are there, and {flag} decides"
        raise ConfigError(what, fix=f"{shlex.join(first)} first")
    if not workspace.plans.exists():
        raise ConfigError("there are no plans to prepare by", where=workspace.plans, fix=f"{shlex.join(first)} first")
    plans = load_plans(workspace.plans)
    plans.refuse_other_dataset(found.labels, found.channels, where=found.root)
    dataset = usable_cases(found, workspace)
    if new := not_inspected(dataset, workspace.inspected_cases):
        raise DatasetError(
            f"{len(new)} case(s) have not been looked into, or have changed since: {listed(new)}",
            where=dataset.root,
            fix=f"{shlex.join(first)} first: it looks into every file",
        )
    groups = ("labeled", "unlabeled", "test") if options.with_test else ("labeled", "unlabeled")
    started = time.monotonic()
    done = prepare_part(dataset, plans, workspace, groups=groups, workers=options.workers, shard=part)
    logger.info("prepared %d case(s) here in %s", done, duration_text(time.monotonic() - started))
    if part.speaks:
        print_next(this_again)


def duration_text(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
