"""flaresemi_plan_and_preprocess: from a folder of scans to plans and prepared cases."""

import argparse
import contextlib
import dataclasses
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from flaresemi.cli.common import (
    AddSetting,
    StrictParser,
    add_dataset_options,
    dataset_words,
    open_workspace,
    print_next,
    run,
)
from flaresemi.cli.numbers import count, number
from flaresemi.cli.preparation_part import duration_text, prepare_as_part, preparing_again
from flaresemi.cli.repeating import repeated
from flaresemi.compute.device import select_device
from flaresemi.dataset import Dataset, load_dataset
from flaresemi.errors import ConfigError, DatasetError, PlanError, one_line
from flaresemi.files import copy_file, read_text, write_text
from flaresemi.locking import working_alone
from flaresemi.machine import free_memory_gib
from flaresemi.networks.cost import parameter_count, training_memory_gib
from flaresemi.planning.cases import read_geometries
from flaresemi.planning.decisions import Decisions, load_decisions, save_decisions, settle, usable_cases
from flaresemi.planning.estimates import estimate, largest, oversized
from flaresemi.planning.findings import Finding
from flaresemi.planning.fingerprint import fingerprint_dataset, organs_by_case
from flaresemi.planning.given_splits import FILE_NAME, given_folds, refuse_others
from flaresemi.planning.inspection import inspect_dataset
from flaresemi.planning.planner import choose_body, make_plans
from flaresemi.planning.preparation import Task, pending, prepare_dataset, write_lists
from flaresemi.planning.present_plans import present_plans
from flaresemi.planning.presets import PRESETS
from flaresemi.planning.splits import DEFAULT_FOLDS, DEFAULT_SEED, Splits, load_or_make_splits
from flaresemi.plans import DatasetFingerprint, MemoryGib, Plans, Stage, load_plans
from flaresemi.ranges import Seed
from flaresemi.records import dumps, save_record
from flaresemi.sides import mirroring_told
from flaresemi.unfinished import remove_leftovers
from flaresemi.workspace import Workspace

logger = logging.getLogger("flaresemi.cli.plan_and_preprocess")  # also when run with python -m

#: Findings of one kind that are shown on the screen; the files in the workspace have all.
_MOST_SHOWN = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run(lambda options: _plan_and_preprocess(options, words), _parser(), words)


def _plan_and_preprocess(options: argparse.Namespace, words: list[str]) -> None:
    workspace = open_workspace(options)
    found = load_dataset(options.dataset)
    this_again = preparing_again(_parser(), options)
    if options.shard is not None:  # others are at work beside it
        prepare_as_part(options, found, workspace, this_again)
        return
    with working_alone(workspace.lock("preprocessed"), ["flaresemi_plan_and_preprocess", *words]), _quiet_readers():
        remove_leftovers(workspace.root, workspace.case_fingerprints, workspace.lists, workspace.prepared_sources)
        _check(options, found, workspace)
        if options.check_only:
            print_next([this_again[0], *repeated(_parser(), options, without=("check_only", "plan_only"))])
            return
        dataset = usable_cases(found, workspace)
        obeyed = workspace.plans.exists() and not options.replan
        body = load_plans(workspace.plans).measured_body if obeyed else None
        fingerprint = fingerprint_dataset(dataset, workspace.case_fingerprints, workers=options.workers, body=body)
        logger.info("\n%s", _fingerprint_text(fingerprint))
        plans = _plans(options, fingerprint, workspace)
        logger.info("\n%s", _plans_text(plans, workspace))
        left_out = {case.id for case in found.labeled} - {case.id for case in dataset.labeled}
        splits = _splits(options, dataset, workspace, left_out, organs_by_case(fingerprint))
        write_lists(dataset, splits, workspace)
        is_complete = _prepare(options, dataset, plans, fingerprint, workspace)
    stage = Stage.COARSE if plans.two_stage else Stage.FINE
    train = ["flaresemi_train", stage.value, splits.names[0], *dataset_words(options)]
    print_next(train if is_complete else this_again)


def _check(options: argparse.Namespace, dataset: Dataset, workspace: Workspace) -> None:
    """Inspects every file, writes the report and handles bad cases.

    Raises:
        DatasetError: cases cannot be used and shall not be left out, or the dataset as a whole is not described.
    """
    facts = inspect_dataset(
        dataset, workspace.inspected_cases, workers=options.workers, measured=workspace.case_fingerprints
    )
    before = load_decisions(workspace)
    report, decisions = settle(
        dataset, facts, before, fix_geometry=options.fix_geometry, skip_bad_cases=options.skip_bad_cases
    )
    report.write_csv(workspace.integrity_csv)
    write_text(workspace.integrity_summary, report.summary())
    logger.info("%s%s", report.summary(most=_MOST_SHOWN, severities=("warning",)), workspace.integrity_summary)
    skipped = {decision.case_id for decision in decisions.skipped}
    errors = [finding for finding in report.errors if finding.case_id not in skipped]
    if errors:
        raise _cannot_be_used(errors, workspace)
    _say_decisions(before, decisions)
    save_decisions(workspace, decisions)


def _cannot_be_used(errors: list[Finding], workspace: Workspace) -> DatasetError:
    """One message with every error."""
    lines = []
    for finding in errors:
        lines.append(f"case '{finding.case_id}': {finding.message}" if finding.case_id else finding.message)
        lines += [f"    {line}" for line in (finding.file, *finding.remedy.splitlines()) if line]
    cases = {finding.case_id for finding in errors if finding.case_id}
    what = f"{len(cases)} case(s) cannot be used" if cases else "the dataset cannot be used as it is"
    return DatasetError(
        "\n".join([what, *lines]),
        where=workspace.integrity_summary,
        fix="correct the files, or go on without these cases: --skip-bad-cases" if cases else None,
    )


def _say_decisions(before: Decisions, now: Decisions) -> None:
    for decision in now.skipped:
        logger.warning("case '%s' is left out: %s", decision.case_id, decision.why)
    for decision in now.on_image_grid:
        logger.warning("case '%s': its label map is put on the image's grid", decision.case_id)
    skipped = {decision.case_id for decision in now.skipped}
    for decision in before.skipped:
        if decision.case_id not in skipped:
            logger.info("case '%s' was left out before and takes part again", decision.case_id)


def _plans(options: argparse.Namespace, fingerprint: DatasetFingerprint, workspace: Workspace) -> Plans:
    """Uses the plans of the workspace, or makes new ones if there are none or `--replan` is given.

    Raises:
        PlanError: the plans cannot be read, or were made from other labeled cases.
    """
    if workspace.plans.exists() and not options.replan:
        plans = present_plans(fingerprint, workspace, keep=options.keep_plans)
        asked = [
            flag
            for flag, value, default in (
                ("--preset", options.preset, "auto"),
                ("--gpu-memory-gib", options.gpu_memory_gib, None),
                ("--stages", options.stages, "auto"),
                ("--network", options.network, None),
                ("--network-argument", options.network_arguments, None),
            )
            if value != default
        ]
        if asked:
            logger.warning("%s is obeyed as it is; %s takes effect with --replan", workspace.plans, ", ".join(asked))
        body, why = choose_body(fingerprint)
        if body == "whole" != plans.body:
            logger.warning("%s crops all the same; with --replan %s", workspace.plans, why)
        return plans
    preset, why = _preset(options.preset)
    try:
        plans = make_plans(
            fingerprint,
            preset=preset,  # type: ignore[arg-type]
            memory_gib=options.gpu_memory_gib,
            stages=options.stages,
            architecture=options.network,
            arguments=options.network_arguments,
        )
    except ValueError as problem:
        raise PlanError(
            f"no plans can be made for this dataset: {problem}",
            where=options.dataset,
            fix="see that the spacings in the headers of the labeled images are in mm",
        ) from None
    plans = dataclasses.replace(plans, reasons={**plans.reasons, "preset": f"{why}; {plans.reasons['preset']}"})
    if workspace.plans.exists() and read_text(workspace.plans, errors="replace") != dumps(plans):
        copy_file(workspace.plans, workspace.replaced_plans)
        logger.info("the plans that were there are kept as %s", workspace.replaced_plans)
    save_record(workspace.fingerprint, fingerprint)
    save_record(workspace.plans, plans)
    return plans


def _preset(name: str) -> tuple[str, str]:
    if name != "auto":
        return name, "as asked for"
    if select_device("auto").type == "cuda":
        return "base", "chosen since a CUDA GPU is visible"
    return "small", "chosen since no CUDA GPU is visible"


def _splits(
    options: argparse.Namespace,
    dataset: Dataset,
    workspace: Workspace,
    left_out: set[str],
    organs: dict[str, frozenset[str]],
) -> Splits:
    """The folds: those that there are, or new ones. New plans may have new folds while no model depends on the old."""
    dealt = options.folds is not None or options.seed is not None
    stays = workspace.splits.exists() and not (options.replan and not workspace.models.exists())
    given = given_folds(dataset, options.splits, dealt=dealt, left_out=left_out, present=stays)
    if not stays:
        workspace.splits.unlink(missing_ok=True)
    case_ids = [case.id for case in dataset.labeled]
    groups = {case.id: case.group for case in dataset.labeled if case.group is not None}
    splits = load_or_make_splits(
        workspace.splits, case_ids, options.folds, options.seed, groups=groups, organs=organs, given=given
    )
    refuse_others(splits, given or splits, workspace.splits, named=options.splits is not None)
    return splits


def _prepare(
    options: argparse.Namespace, dataset: Dataset, plans: Plans, fingerprint: DatasetFingerprint, workspace: Workspace
) -> bool:
    """Prepares what is missing, after printing what that will cost.

    Returns:
        Whether all cases are prepared now.

    Raises:
        ConfigError: the disk is too small.
        DatasetError: cases could not be prepared; all others are.
    """
    groups = ("labeled", "unlabeled", "test") if options.with_test else ("labeled", "unlabeled")
    tasks = pending(dataset, plans, workspace, groups=groups)
    if not tasks:
        logger.info("\nall cases are prepared already")
        return True
    _check_disk(tasks, plans, fingerprint, workspace)
    if options.plan_only:
        return False
    started = time.monotonic()
    count = prepare_dataset(dataset, plans, workspace, groups=groups, workers=options.workers)
    logger.info("prepared %d case(s) in %s", count, duration_text(time.monotonic() - started))
    return True


def _check_disk(tasks: Sequence[Task], plans: Plans, fingerprint: DatasetFingerprint, workspace: Workspace) -> None:
    """Prints the estimate, and checks that the disk has room; cases that are too large on their own do not count.

    Raises:
        ConfigError: it has not.
    """
    free = shutil.disk_usage(workspace.root).free / 2**30
    grids = read_geometries(task.case for task in tasks)
    for case_id, what in oversized(plans, fingerprint, grids, disk_gib=free, memory_gib=free_memory_gib()).items():
        logger.warning("case '%s' takes more than is free: %s", case_id, what)
        del grids[case_id]
    if not grids:  # no header can be read: preparing says why
        return
    unlabeled = {task.case.id for task in tasks if task.case.label is None}
    labeled, others = ([grids[name] for name in grids if (name in unlabeled) == which] for which in (False, True))
    expected = estimate(plans, fingerprint, labeled, others)
    lacking = {stage for task in tasks for stage in task.stages}
    wanted = sum(one.disk_gib for one in (expected.coarse, expected.fine) if one.stage in lacking)
    logger.info("\n%s\n  %.3g GiB of disk are free", expected.text, free)
    if wanted > free:
        raise ConfigError(
            f"not enough disk space: the prepared cases take about {wanted:.1f} GiB, {free:.1f} GiB are free",
            where=f"{workspace.root}; {largest(plans, grids)}",
            fix="free some space, name a workspace on another disk with -w, or raise fine.spacing_zyx_mm in plans.json",
        )


def _times(values: Iterable[float]) -> str:
    return "×".join(f"{value:.3g}" for value in values)


def _fingerprint_text(fingerprint: DatasetFingerprint) -> str:
    cases = fingerprint.cases
    shape = _times(statistics.median(sizes) for sizes in zip(*(case.shape_zyx for case in cases), strict=True))
    spacing = _times(statistics.median(sizes) for sizes in zip(*(case.spacing_zyx_mm for case in cases), strict=True))
    lines = [f"fingerprint: {len(cases)} labeled case(s), median {shape} voxels of {spacing} mm (z, y, x)"]
    for channel, found in zip(fingerprint.channels, fingerprint.intensities, strict=True):
        lines.append(
            f"  {channel} in the organs: {found.percentile_00_5:.4g} to {found.percentile_99_5:.4g} "
            f"(0.5th to 99.5th percentile), mean {found.mean:.4g}, SD {found.sd:.4g}"
        )
    return "\n".join(lines)


def _plans_text(plans: Plans, workspace: Workspace) -> str:
    lines = [f"plans: preset {plans.preset} ({one_line(plans.reasons.get('preset', 'edited'))})"]
    told = (*(("body",) if plans.body == "whole" else ()), "annotated", "ignored")
    lines += [f"  {one_line(plans.reasons[key])}" for key in told if key in plans.reasons]
    for plan in (plans.coarse, plans.fine):
        spacing, patch = map(_times, (plan.spacing_zyx_mm, plan.patch_zyx))
        network = plan.network
        memory = training_memory_gib(network, plan.patch_zyx, plan.batch_size)
        lines.append(
            f"  {plan.stage:<6}  {spacing} mm, patch {patch}, batch {plan.batch_size}; {network.block} U-Net, features "
            f"{network.features[0]} to {network.features[-1]} on {len(network.features)} levels, "
            f"{parameter_count(network) / 1e6:.1f} M parameters, {memory:.1f} GiB to train"
        )
    lines.append(f"  {one_line(plans.reasons.get('stages', 'two stages' if plans.two_stage else 'one stage'))}")
    lines.append(f"  {mirroring_told(plans.labels.names, plans.labels.mirror_pairs)}")
    lines.append(f"  {workspace.plans} has every number with its reason; edit it before training if you like")
    return "\n".join(lines)


@contextlib.contextmanager
def _quiet_readers() -> Iterator[None]:
    """The integrity report has all that the readers warn of; they would say it again at every step."""
    readers = logging.getLogger("flaresemi.io")
    before = readers.level
    readers.setLevel(logging.ERROR)
    try:
        yield
    finally:
        readers.setLevel(before)


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    plan = parser.add_argument_group("plans", "count when plans.json is made: the first time, or with --replan")
    plan.add_argument(
        "--preset",
        choices=["auto", *PRESETS],
        default="auto",
        help="network family; auto: base where a CUDA GPU is visible, else small",
    )
    plan.add_argument(
        "--network",
        metavar="NAME",
        help="FINE's architecture: unet, mednext, or a name that an installed package declares [the preset's]",
    )
    plan.add_argument(
        "--network-argument",
        dest="network_arguments",
        action=AddSetting,
        metavar="NAME=VALUE",
        help="an argument of that network; repeat for each",
    )
    plan.add_argument(
        "--gpu-memory-gib", type=number(MemoryGib), default=None, metavar="G", help="memory for training [the preset's]"
    )
    plan.add_argument(
        "--stages",
        choices=["auto", "one", "two"],
        default="auto",
        help="two: COARSE finds the organs, FINE segments them; one: FINE alone; auto: by the size of body and organs",
    )
    present = plan.add_mutually_exclusive_group()
    present.add_argument("--replan", action="store_true", help="replace the present plans by new ones")
    present.add_argument(
        "--keep-plans", action="store_true", help="keep the plans although the labeled cases have changed"
    )
    plan.add_argument("--folds", type=count, default=None, metavar="N", help=f"for cross-validation [{DEFAULT_FOLDS}]")
    plan.add_argument(
        "--splits",
        type=Path,
        metavar="FILE",
        help=f"folds of your own, as nnU-Net's {FILE_NAME} has them [that file in the dataset folder, where it is]",
    )
    plan.add_argument("--seed", type=number(Seed), default=None, help=f"of the folds [{DEFAULT_SEED}]")


def _parser() -> argparse.ArgumentParser:
    parser = StrictParser(
        "flaresemi_plan_and_preprocess",
        "Check the scans, decide how to train on them, and prepare them. What is done already is not done again.",
    )
    add_dataset_options(parser)
    _add_plan_options(parser)
    bad = parser.add_argument_group("bad cases", "what is decided is kept in the workspace and holds for all commands")
    bad.add_argument("--skip-bad-cases", action="store_true", help="leave out unusable cases")
    bad.add_argument(
        "--fix-geometry",
        action="store_true",
        help="if only the header of a label map is wrong, use the image's (no file is changed)",
    )
    work = parser.add_argument_group("work")
    work.add_argument("--check-only", action="store_true", help="stop after the integrity report")
    work.add_argument("--plan-only", action="store_true", help="stop after the plans and the estimate")
    work.add_argument(
        "--shard", metavar="I/N", help="after --plan-only: prepare part 0/4 of the cases; or slurm, torchrun"
    )
    work.add_argument("--with-test", action="store_true", help="prepare the test cases too")
    work.add_argument(
        "--workers",
        type=count,
        default=None,
        metavar="N",
        help="processes [one per core, as far as memory allows]",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
