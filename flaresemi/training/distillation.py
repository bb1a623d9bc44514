"""Label maps of the unlabeled cases from elsewhere: what a small student learns from its teacher, whoever that is."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from flaresemi.compute.distributed import Ranks
from flaresemi.compute.parallel import parallel_map, worker_count
from flaresemi.compute.sharding import Shard
from flaresemi.dataset import Case, Dataset
from flaresemi.errors import ConfigError, DatasetError, FlaresemiError, SelectionError, listed
from flaresemi.evaluation.folders import files_by_case
from flaresemi.io.case_store import LabelStore
from flaresemi.io.image_file import content_of, is_read_by_organs
from flaresemi.io.images import read_grid
from flaresemi.labels import LabelSet
from flaresemi.machine import available_cores
from flaresemi.planning.cases import read_geometries, read_organs
from flaresemi.planning.preparation import gib_to_prepare, refuse_changed
from flaresemi.planning.splits import ALL
from flaresemi.plans import load_plans
from flaresemi.preprocessing.preprocessor import preprocessing_hash, stage_labels
from flaresemi.records import load_record, record_hash
from flaresemi.selection import EXPORT_RECORD, ExportRecord, SelectedCase, Selection
from flaresemi.training.semi_supervised import SemiSupervision
from flaresemi.training.task import Teaching, TrainingTask, check_prepared
from flaresemi.workspace import Workspace

logger = logging.getLogger(__name__)

_RULES = "label maps from elsewhere 1"

#: Voxels of all images from which on starting processes (some seconds each) is worth it.
_WORTH_PROCESSES = 50_000_000


def begin_teaching(folder: Path, task: TrainingTask, dataset: Dataset) -> Teaching:
    """Looks which label maps a folder has for the unlabeled cases, and whether this training may learn from them.

    Args:
        folder: CASE.nii.gz and so on, on the grids of the images. Where `exported.json` says what may be trusted,
            that is used; otherwise every case and every organ.
        task: The training.
        dataset: With all decisions about bad cases applied.

    Raises:
        DatasetError: there is no such folder, or no label map in it.
        SelectionError: none belongs to an unlabeled case, one belongs to a labeled case, or `exported.json` is damaged.
        ConfigError: the teacher was trained on the cases that judge this training.
    """
    _refuse_outer_folder(folder)
    files = files_by_case(folder)
    record = folder / EXPORT_RECORD
    exported = load_record(record, ExportRecord, error=SelectionError) if record.exists() else None
    real = sorted(files.keys() & {*(case.id for case in dataset.labeled), *task.training, *task.validation})
    if real:
        raise SelectionError(
            f"{len(real)} label map(s) belong to labeled cases: {listed(real)}",
            where=folder,
            fix="remove them from this folder: a real label is never replaced",
        )
    if exported is not None:
        _refuse_teacher(exported, task, folder)
    used = _used(files, exported, dataset, folder)
    if relatives := sorted(used & dataset.unlabeled_relatives(task.validation).keys()):
        logger.warning(
            "%s: %d label map(s) are of groups of which fold %s holds cases out, and are not used: %s",
            folder,
            len(relatives),
            task.fold,
            listed(relatives),
        )
        used -= {*relatives}
    if not used:
        raise SelectionError(
            "no label map here can be used: none is that of an unlabeled case that was selected, of another group than "
            "the held-out cases",
            where=folder,
            fix="label maps are called like their images in unlabeled_image or imagesUn: CASE.nii.gz",
        )
    return Teaching(
        folder=str(folder.resolve()),
        exported=exported,
        files={case_id: _meaning(files[case_id], task.labels) for case_id in sorted(used)},
    )


def prepare_labels(
    teaching: Teaching,
    task: TrainingTask,
    dataset: Dataset,
    workspace: Workspace,
    *,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
) -> SemiSupervision:
    """Brings the label maps onto the stage's grid: once, in parallel, and taken up again where it was stopped.

    What is on the stage's grid already is not looked for in the folder again, so that a training goes on with what it
    began with. Of several ranks, each does its part.

    Args:
        teaching: Which label maps.
        task: The training.
        dataset: With all decisions about bad cases applied.
        workspace: The training's.
        ranks: Of a distributed launch.

    Raises:
        DatasetError: an image is not prepared, or label maps are gone, have changed since the training began, do not
            lie on their images or have undeclared values; all of them are named, after all others were done.
    """
    store = LabelStore(workspace.pseudo_labels(task.fold, task.plan.stage), task.store)
    check_prepared(task.store, tuple(teaching.files), preprocessing_hash(task.body, task.plan))
    if ranks.is_main:
        store.remove_leftovers()
    ranks.barrier()
    sources = {case_id: _source(content, task.labels) for case_id, content in teaching.files.items()}
    mine = Shard(ranks.rank, ranks.world_size).of(tuple(sources))
    left = [case_id for case_id in mine if not _is_stored(store, case_id, sources[case_id])]
    if left:
        cases = [dataset.case(case_id) for case_id in left]
        refuse_changed(dataset, cases, load_plans(workspace.plans), workspace)
        _store_all(teaching, cases, store, task.labels, _workers(cases, workspace, ranks))
    ranks.barrier()
    return SemiSupervision(
        labels=dict.fromkeys(sources, store),
        selection=_selection(teaching, task.labels),
        mixing=teaching.mixing,
        taught_by=teaching,
    )


def caution(teaching: Teaching, held_out: Sequence[str]) -> str | None:
    """Why the scores of held-out cases flatter a student; None where they do not."""
    if not held_out:
        return None
    if teaching.exported is None:
        return (
            "nothing in the folder of pseudo-labels says what their teacher was trained on: if the held-out cases were "
            "part of it, their scores are optimistic"
        )
    seen = set(teaching.exported.trained_on) & set(held_out)
    if seen and not teaching.exported.is_outside:
        return (
            f"the teacher was trained on {len(seen)} of the {len(held_out)} held-out cases: their scores are optimistic"
        )
    if teaching.exported.taught_outside or teaching.exported.is_outside:
        return (
            "these pseudo-labels go back to a model from outside, and nothing says what that was trained on: if the "
            "held-out cases were part of it, their scores are optimistic"
        )
    return None


def _refuse_outer_folder(folder: Path) -> None:
    """Several chains export into a folder each."""
    inner = sorted(path.parent.name for path in folder.glob(f"fold_*/{EXPORT_RECORD}"))
    if inner and not (folder / EXPORT_RECORD).exists():
        raise ConfigError(
            "the pseudo-labels of several folds lie in folders within this one",
            where=folder,
            fix=f"name one of them: {', '.join(inner)}",
        )


def _refuse_teacher(exported: ExportRecord, task: TrainingTask, folder: Path) -> None:
    """A teacher that was trained on everything is taken with a caution; one of another fold is a mistake."""
    seen = sorted(set(exported.trained_on) & set(task.validation))
    if seen and exported.fold != ALL and not exported.is_outside:
        raise ConfigError(
            f"these pseudo-labels are those of fold {exported.fold}, whose models were trained on cases that fold "
            f"{task.fold} holds out: {listed(seen)}",
            where=folder,
            fix="take pseudo-labels of models that never saw them, or train fold 'all'",
        )


def _used(files: Mapping[str, Path], exported: ExportRecord | None, dataset: Dataset, folder: Path) -> set[str]:
    """The cases to learn from; says what is left out."""
    unlabeled = {case.id for case in dataset.unlabeled}
    strangers = sorted(files.keys() - unlabeled)
    if strangers:
        logger.warning(
            "%s: %d label map(s) belong to no unlabeled case of the dataset and are not used: %s",
            folder,
            len(strangers),
            listed(strangers),
        )
    used = set(files.keys() & unlabeled)
    if exported is not None and exported.selection is not None:
        selected = {case.case_id for case in exported.selection.selected}
        absent = sorted(selected & unlabeled - files.keys())
        if absent:
            logger.warning("%s: %d selected case(s) have no label map here: %s", folder, len(absent), listed(absent))
        if used - selected:
            logger.info("%d label map(s) were not selected and are not used", len(used - selected))
        used &= selected
    return used


def _selection(teaching: Teaching, labels: LabelSet) -> Selection:
    """The organs that the label maps supervise: those that were selected, or all where nothing was judged."""
    selection = None if teaching.exported is None else teaching.exported.selection
    if selection is None:
        taken_at_its_word = (
            SelectedCase(case_id=case_id, score=1.0, supervised=labels.names, rejected={}) for case_id in teaching.files
        )
        return Selection(round=1, fold=ALL, rule="case", thresholds={}, selected=tuple(taken_at_its_word), rejected={})
    selected = tuple(case for case in selection.selected if case.case_id in teaching.files)
    unknown = sorted({name for case in selected for name in case.supervised} - set(labels.names))
    if unknown:
        raise SelectionError(
            f"the selection names organs that this dataset has not: {listed(unknown)}",
            where=Path(teaching.folder) / EXPORT_RECORD,
            fix="take pseudo-labels of the same dataset",
        )
    return dataclasses.replace(selection, selected=selected)


def _meaning(path: Path, labels: LabelSet) -> str:
    """Identifies what a label map's file holds, with the names where these decide it."""
    content = content_of(path)
    return record_hash([content, labels.names]) if is_read_by_organs(path, labels) else content


def _source(content: str, labels: LabelSet) -> str:
    """Identifies what a label map's file means."""
    return record_hash([content, _RULES, *labels.reading])


def _is_stored(store: LabelStore, case_id: str, source: str) -> bool:
    return store.is_current(case_id) and store.record(case_id).label_source == source


def _workers(cases: Sequence[Case], workspace: Workspace, ranks: Ranks) -> int:
    """As many as preprocessing would take, which needs more memory; the ranks share the machine."""
    grids, plans = read_geometries(cases).values(), load_plans(workspace.plans)
    if sum(math.prod(grid.shape_zyx) for grid in grids) < _WORTH_PROCESSES:
        return 1
    gib = max(gib_to_prepare(grid, plans) for grid in grids)
    return worker_count(gib * ranks.world_size, max(available_cores() // ranks.world_size, 1))


def _store_all(teaching: Teaching, cases: Sequence[Case], store: LabelStore, labels: LabelSet, workers: int) -> None:
    files = files_by_case(Path(teaching.folder))
    logger.info("bringing %d label map(s) onto the stage's grid with %d process(es)", len(cases), workers)
    work = functools.partial(_store_one, files=files, contents=teaching.files, labels=labels, store=store)
    failures = sorted(
        failure
        for _, failure in parallel_map(work, cases, workers=workers, progress="pseudo-labels", mute=True)
        if failure is not None
    )
    if failures:
        raise DatasetError(
            f"{len(failures)} of {len(cases)} label maps cannot be used; the others are done\n" + "\n".join(failures),
            fix="correct or remove these files and start again: only what is missing is done",
        )


def _store_one(
    case: Case, *, files: Mapping[str, Path], contents: Mapping[str, str], labels: LabelSet, store: LabelStore
) -> str | None:
    """Stores one label map; what a user can mend comes back as text, so that the others go on."""
    path = files.get(case.id)
    if path is None or _meaning(path, labels) != contents[case.id]:
        return f"case '{case.id}': its label map is not the one that this training began with (--restart takes the new)"
    try:
        indices = read_organs(dataclasses.replace(case, label=path), labels, read_grid(case.images[0]))
    except FlaresemiError as error:
        return f"{error.what} ({path})"
    label = stage_labels(indices, store.images.record(case.id).grid, labels.ignored)
    everything = tuple(range(1, labels.count + 1))
    store.write_labels(case.id, label, labels.channels - 1, everything, _source(contents[case.id], labels))
    return None
