"""A whole dataset onto the voxels of both stages: once, in parallel, and taken up again where it was stopped."""

import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flaresemi.case_names import case_file
from flaresemi.compute.parallel import parallel_map, worker_count
from flaresemi.compute.sharding import Shard
from flaresemi.dataset import Case, Dataset
from flaresemi.errors import DatasetError, FlaresemiError, about_case, listed
from flaresemi.files import read_text, write_text
from flaresemi.geometry import Geometry, IntTriple, resampled_shape
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.labels import LabelSet
from flaresemi.locking import Claims
from flaresemi.machine import free_memory_gib
from flaresemi.planning.cases import read_case, read_geometries, supervised_organs
from flaresemi.planning.sources import case_content_hash, source_hash
from flaresemi.planning.splits import Splits
from flaresemi.plans import Plans, Stage
from flaresemi.preprocessing.preprocessor import PreparedImage, prepare, preprocessing_hash, stage_labels
from flaresemi.records import load_record, save_record
from flaresemi.room import enough_memory, refuse_unfit, refuse_without_disk
from flaresemi.workspace import Workspace

logger = logging.getLogger(__name__)

_RULES = "preparation 1"

#: Main memory while a case is prepared, bytes per voxel and channel of the image and of the larger stage. Measured on
#: a phantom of 173×505×505, to two spacings, and a CT of 41×512×512: 13.6 and 4.8; rounded up.
_BYTES_PER_VOXEL = 16
_BYTES_PER_STAGE_VOXEL = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The sources of a prepared case.

    Attributes:
        source_hash: Of the names, sizes and times of its files, which show at a glance that nothing has changed.
        content_hash: Of what they hold, where the times are others; empty where that could not be read.
    """

    source_hash: str
    content_hash: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A case and the stages that it still lacks."""

    case: Case
    stages: tuple[Stage, ...]
    source_hash: str


def prepare_dataset(
    dataset: Dataset,
    plans: Plans,
    workspace: Workspace,
    *,
    groups: Iterable[str] = ("labeled", "unlabeled"),
    workers: int | None = None,
) -> int:
    """Prepares every case that is not there yet, reading each once for both stages.

    A case is made anew when its plan, one of its files, its label values or what it annotates has changed.

    Args:
        dataset: The usable cases.
        plans: Both stages are prepared, COARSE also where FINE works alone: it is small, and may be tried.
        workspace: Where to.
        groups: Which cases: labeled, unlabeled, test.
        workers: Processes; None: as many as cores and memory allow.

    Returns:
        How many cases were prepared now.

    Raises:
        DatasetError: cases could not be read, or take more memory or disk than is free; all of them are named, after
            all others were completed.
        OSError: the disk is full or cannot be written to.
    """
    for stage in Stage:
        _store(workspace, stage).remove_leftovers()
    tasks = pending(dataset, plans, workspace, groups=groups)
    if not tasks:
        return 0
    needed = [gib_to_prepare(grid, plans) for grid in read_geometries(task.case for task in tasks).values()]
    gib = _gib_of_one(needed)
    count = worker_count(gib, workers)
    logger.info("preparing %d case(s) with %d process(es) of at most %.1f GiB each", len(tasks), count, gib)
    work = functools.partial(_prepare_case, labels=dataset.labels, plans=plans, workspace=workspace)
    failures = {
        task.case.id: failure
        for task, failure in parallel_map(work, tasks, workers=count, progress="preprocessing", mute=True)
        if failure is not None
    }
    _raise_failures(failures, len(tasks))
    return len(tasks)


def prepare_part(
    dataset: Dataset,
    plans: Plans,
    workspace: Workspace,
    *,
    groups: Iterable[str],
    workers: int | None,
    shard: Shard,
) -> int:
    """Prepares what a process takes of the cases that are not there yet, beside others; see `prepare_dataset`.

    One that helps goes on with what no other has done or claimed, and ends when all cases are prepared.

    Returns:
        How many cases it prepared.

    Raises:
        DatasetError: cases could not be prepared; the others are.
    """
    cases = {case.id: case for group in groups for case in getattr(dataset, group)}
    names = shard.before_others(list(cases))
    grids = read_geometries(cases[name] for name in names)
    count = worker_count(_gib_of_one([gib_to_prepare(grid, plans) for grid in grids.values()]), workers)
    ended: set[str] = set()
    claims = Claims(workspace.prepared_claims) if shard.helps else None
    if claims is not None and not claims.are_exclusive:
        logger.warning("%s: this file system has no locks; every shard prepares its own part alone", claims.path)
        names, claims = dataclasses.replace(shard, helps=False).before_others(list(cases)), None

    def lacks(name: str) -> Task | None:
        one = dataclasses.replace(dataset, labeled=(), unlabeled=(), test=(cases[name],))
        return next(iter(pending(one, plans, workspace, groups=("test",))), None)

    turns: Iterator[str] = iter(names)
    if claims is not None:
        turns = claims.hand_out(names, lambda name: lacks(name) is None, lambda: False, ended.__contains__)
    tasks = (task for name in turns if (task := _task_of(lacks(name), name, ended)) is not None)
    work = functools.partial(_prepare_case, labels=dataset.labels, plans=plans, workspace=workspace)
    results = parallel_map(
        work,
        tasks,
        workers=count,
        progress="preprocessing",
        total=len(names),
        mute=True,
        ended=lambda task: ended.add(task.case.id),
    )
    found = {task.case.id: failure for task, failure in results}
    if claims is not None:
        claims.clear()
    _raise_failures({name: failure for name, failure in found.items() if failure is not None}, len(found))
    return len(found)


def _gib_of_one(needed: Sequence[float]) -> float:
    """Memory of a process that prepares any of the cases that fit; those that cannot are refused one by one."""
    free = free_memory_gib()
    return max((gib for gib in needed if gib <= free), default=0.5)


def _task_of(task: Task | None, name: str, ended: set[str]) -> Task | None:
    """The task; where there is none any more, the work on the name has ended."""
    if task is None:
        ended.add(name)
    return task


def _raise_failures(failures: Mapping[str, str], of: int) -> None:
    if failures:
        told = "\n".join(failures[case_id] for case_id in sorted(failures))
        raise DatasetError(
            f"{len(failures)} of {of} cases could not be prepared; the others are done\n{told}",
            fix="correct or remove them and run the same command again: it does only what is missing",
        )


def pending(
    dataset: Dataset, plans: Plans, workspace: Workspace, *, groups: Iterable[str] = ("labeled", "unlabeled")
) -> list[Task]:
    """The cases that are still to be prepared, each with its missing stages."""
    stores = {stage: _store(workspace, stage) for stage in Stage}
    hashes = {stage: preprocessing_hash(plans.body, plans.stage(stage)) for stage in Stage}
    tasks = []
    cases = [case for group in groups for case in getattr(dataset, group)]
    changed = set(_changed(cases, dataset.labels, workspace, unknown=True))
    for case in cases:
        same = case.id not in changed
        missing = tuple(stage for stage in Stage if not (same and stores[stage].has(case.id, hashes[stage])))
        if missing:
            source = source_hash(case, dataset.labels, _RULES)
            tasks.append(Task(case=case, stages=missing, source_hash=source))
    return tasks


def refuse_changed(dataset: Dataset, cases: Iterable[Case], plans: Plans, workspace: Workspace) -> None:
    """Checks that a dataset is what was planned for, and that cases of it still are what they were prepared from.

    Raises:
        PlanError: organs or channels are others than those of the plans.
        DatasetError: files have changed; it names the cases.
    """
    plans.refuse_other_dataset(dataset.labels, dataset.channels, where=dataset.root)
    changed = _changed(cases, dataset.labels, workspace, unknown=False)
    if changed:
        raise DatasetError(
            f"{len(changed)} case(s) have changed since they were prepared: {listed(changed)}",
            where=workspace.prepared_sources,
            fix="put the files back as they were, or run flaresemi_plan_and_preprocess again (as after an "
            "update that reads files otherwise) and train anew",
        )


def case_versions(case_ids: Iterable[str], workspace: Workspace) -> dict[str, str]:
    """The versions of the sources of prepared cases, by content, so that they outlast copies; empty where not known."""
    known = {case_id: _known_source(case_file(workspace.prepared_sources, case_id, ".json")) for case_id in case_ids}
    return {case_id: source.content_hash if source else "" for case_id, source in known.items()}


def present_version(case: Case, labels: LabelSet) -> str:
    """The version of a case's files as they are now, like that of `case_versions`; empty where they cannot be read."""
    return case_content_hash(case, labels, _RULES)


def gib_to_prepare(image: Geometry, plans: Plans) -> float:
    """Main memory that preparing an image takes, GiB, if the patient fills it."""
    stage = max(math.prod(_stage_shape(image, plans, stage)) for stage in Stage)
    bytes_per_channel = _BYTES_PER_VOXEL * math.prod(image.shape_zyx) + _BYTES_PER_STAGE_VOXEL * stage
    return 0.5 + bytes_per_channel * len(plans.channels) / 2**30


def _stage_shape(image: Geometry, plans: Plans, stage: Stage) -> IntTriple:
    return resampled_shape(image.shape_zyx, image.spacing_zyx_mm, plans.stage(stage).spacing_zyx_mm)


def write_lists(dataset: Dataset, splits: Splits, workspace: Workspace) -> None:
    """Writes the names of the cases of each group and fold, one a line, as the seed did."""
    lists = {
        "labeled": [case.id for case in dataset.labeled],
        "unlabeled": [case.id for case in dataset.unlabeled],
        "test": [case.id for case in dataset.test],
    }
    for number, split in enumerate(splits.folds):
        lists[f"fold_{number}_train"] = list(split.train)
        lists[f"fold_{number}_validation"] = list(split.validation)
    for path in workspace.lists.glob("fold_*.txt"):
        if path.stem not in lists:
            path.unlink()  # of folds that there were before
    for name, case_ids in lists.items():
        _write_if_new(workspace.lists / f"{name}.txt", "".join(f"{case_id}\n" for case_id in case_ids))


def _write_if_new(path: Path, text: str) -> None:
    if not path.is_file() or read_text(path) != text:
        write_text(path, text)


def _prepare_case(task: Task, *, labels: LabelSet, plans: Plans, workspace: Workspace) -> str | None:
    """Prepares one case; errors that a user can fix are returned as text, so that the other cases continue."""
    case = task.case
    source = _Source(source_hash=task.source_hash, content_hash=case_content_hash(case, labels, _RULES))
    try:
        with about_case(case.id), enough_memory(case.images[0]):
            image, indices = read_case(case, labels)
            record = _source_path(workspace, case)
            if _known_source(record) != source:
                record.unlink(missing_ok=True)  # killed between the stages, the next run shall not take the old for new
            prepared = prepare(image, plans.body)
            for stage in task.stages:
                store = _store(workspace, stage)
                _prepare_stage(task, prepared, indices, labels=labels, plans=plans, store=store, stage=stage)
    except FlaresemiError as error:
        return str(error)
    save_record(record, source)
    return None


def _prepare_stage(
    task: Task,
    prepared: PreparedImage,
    indices_zyx: np.ndarray | None,
    *,
    labels: LabelSet,
    plans: Plans,
    store: CaseStore,
    stage: Stage,
) -> None:
    plan = plans.stage(stage)
    grid = prepared.grid(plan)
    made_by = preprocessing_hash(plans.body, plan)
    store.folder.mkdir(parents=True, exist_ok=True)
    channels = plan.network.input_channels  # in float32 while it is resampled, and in float16
    refuse_unfit(grid, bytes_per_voxel=6 * channels)
    refuse_without_disk(grid, store.folder, bytes_per_voxel=2 * channels)
    if indices_zyx is None:
        label = None
        record = CaseRecord.unlabeled(
            case_id=task.case.id, preprocessing_hash=made_by, grid=grid, source_hash=task.source_hash
        )
    else:
        label = stage_labels(indices_zyx, grid, labels.ignored)
        record = CaseRecord.labeled(
            case_id=task.case.id,
            preprocessing_hash=made_by,
            grid=grid,
            label_zyx=label,
            organs=labels.channels - 1,
            supervised=supervised_organs(task.case, labels),
            source_hash=task.source_hash,
        )
    store.write(record, prepared.stage_image(plan), label)


def _store(workspace: Workspace, stage: Stage) -> CaseStore:
    return CaseStore(workspace.preprocessed(stage))


def _source_path(workspace: Workspace, case: Case) -> Path:
    return case_file(workspace.prepared_sources, case.id, ".json")


def _changed(cases: Iterable[Case], labels: LabelSet, workspace: Workspace, *, unknown: bool) -> list[str]:
    """The cases whose files are not what they were prepared from; copies of those are.

    Args:
        unknown: Name also the cases of which it is not known what they were prepared from.
    """
    changed, doubtful = [], []
    for case in cases:
        known, present = _known_source(_source_path(workspace, case)), source_hash(case, labels, _RULES)
        if known is None:
            changed += [case.id] if unknown else []
        elif known.source_hash != present:
            doubtful.append((case, known, present))
    if doubtful:
        logger.info(
            "%d case(s) have files of other times than when they were prepared: their contents are compared",
            len(doubtful),
        )
    for case, known, present in tqdm(doubtful, desc="comparing", unit="case", disable=not sys.stderr.isatty()):
        if known.content_hash and case_content_hash(case, labels, _RULES) == known.content_hash:
            save_record(_source_path(workspace, case), dataclasses.replace(known, source_hash=present))
        else:
            changed.append(case.id)
    return changed


def _known_source(path: Path) -> _Source | None:
    """The sources that a case was last prepared from; None when they are not known."""
    if not path.is_file():
        return None
    try:
        return load_record(path, _Source)
    except FlaresemiError as problem:
        logger.info("a case is prepared again: %s", problem)
        return None
