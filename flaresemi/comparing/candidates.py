"""The models to compare, and whether they may be: of one dataset, with the same cases held out by the same folds."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flaresemi.errors import CheckpointError, ConfigError, listed
from flaresemi.inference.choice import choice_file
from flaresemi.inference.models import load_models, trained_folds
from flaresemi.labels import LabelSet
from flaresemi.nnunet.results import is_nnunet
from flaresemi.planning.decisions import load_decisions
from flaresemi.planning.splits import ALL
from flaresemi.plans import Stage, StagePlan
from flaresemi.records import load_record
from flaresemi.training.runs import RunRecord
from flaresemi.workspace import ModelFolder, Workspace

_SAME = "compare models that were planned and trained on one dataset, with one splits.json"

#: Folders that name no model: the one of a workspace's models, and the usual workspace beside the data.
_USUAL = ("models", "flaresemi")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The finished folds of one plan.

    Attributes:
        name: Short, and of no other candidate.
        folder: As `load_models` takes it.
        plan: Of FINE.
        labels: The organs.
        channels: Of the images.
        networks: Stage, fold and weights of everything, see `LoadedModels.networks`.
        runs: Of every fold, the records of the trainings: FINE's and, where it works behind one, COARSE's.
        moved: Cases whose label map its workspace puts on the image's grid; None where it lies in no workspace.
    """

    name: str
    folder: Path
    plan: StagePlan
    labels: LabelSet
    channels: tuple[str, ...]
    networks: tuple[str, ...]
    runs: Mapping[str, tuple[RunRecord, ...]]
    moved: frozenset[str] | None

    @property
    def stages(self) -> int:
        """2 where COARSE finds the region, else 1."""
        return 2 if self.plan.region == "organs" else 1

    @property
    def held_out(self) -> dict[str, frozenset[str]]:
        """The held-out cases of every fold."""
        return {fold: frozenset(runs[0].validation_cases) for fold, runs in self.runs.items()}


def find_candidates(folders: Sequence[Path], folds: Sequence[str] | None = None) -> tuple[Candidate, ...]:
    """Looks at the models to compare.

    Args:
        folders: One per candidate: a workspace or a folder of models.
        folds: Which to compare; None: all that are finished, which must be the same everywhere.

    Raises:
        ConfigError: there are fewer than two, or they cannot be compared; the message says what differs, and where.
        CheckpointError: a folder holds no trained model, or models that do not belong together.
    """
    names = dict(zip(_names(folders), folders, strict=True))
    finished = {name: _finished(name, folder) for name, folder in names.items()}
    if len({next(iter(found.values())).resolve() for found in finished.values()}) < max(len(folders), 2):
        raise ConfigError(
            "a comparison needs at least two models, each named once",
            where=", ".join(map(str, folders)),
            fix="-m WORKSPACE_ONE WORKSPACE_TWO: workspaces with plans of their own",
        )
    chosen = _common_folds(finished, folds)
    candidates = tuple(_candidate(name, names[name], finished[name], chosen) for name in names)
    for other in candidates[1:]:
        _refuse_other(candidates[0], other)
    _refuse_twice(candidates[0])
    return candidates


def find_candidate(folder: Path, folds: Sequence[str] | None = None) -> Candidate:
    """Looks at one model that was trained in this folder; see `find_candidates`.

    Raises:
        ConfigError: nothing says what it held out, or it saw that.
        CheckpointError: a folder holds no trained model, or models that do not belong together.
    """
    (name,) = _names([folder])
    finished = _finished(name, folder)
    candidate = _candidate(name, folder, finished, _common_folds({name: finished}, folds))
    _refuse_twice(candidate)
    return candidate


def _finished(name: str, folder: Path) -> dict[str, Path]:
    """The folds that hold something out and are finished, each with its folder.

    Raises:
        ConfigError: there is none, or nothing says what was held out.
    """
    if choice_file(folder) is not None:
        raise ConfigError(
            "this is the result of a comparison, and no trained model", where=folder, fix="name the models themselves"
        )
    if folder.exists() and is_nnunet(folder):
        raise ConfigError(
            "a model of nnU-Net does not say which cases it held out",
            where=folder,
            fix="compare it on cases that neither was trained on: flaresemi_predict, then flaresemi_evaluate",
        )
    found = trained_folds(folder)
    numbered = {fold: path for fold, path in found.items() if fold != ALL}
    unnamed = [path for fold, path in numbered.items() if not fold.isdigit()]
    if unnamed:
        raise ConfigError(f"'{name}' does not say which fold it is", where=unnamed[0], fix="call its folder fold_0")
    if not numbered:
        held = (
            f"'{name}' has fold '{ALL}' alone, which holds nothing out" if found else f"'{name}' has no finished fold"
        )
        command = f"flaresemi_train FINE 0 -w {folder}"
        raise ConfigError(
            held, where=folder, fix=f"train a fold to its end, with --continue if it has begun: {command}"
        )
    return numbered


def _common_folds(finished: Mapping[str, Mapping[str, Path]], asked: Sequence[str] | None) -> tuple[str, ...]:
    """The folds to compare.

    Raises:
        ConfigError: a candidate has not finished one of them.
    """
    if asked is not None and ALL in asked:
        raise ConfigError(f"fold '{ALL}' holds nothing out to compare on", fix="name numbered folds: --fold 0 1")
    common = set.intersection(*({*folds} for folds in finished.values()))
    wanted = set(asked) if asked is not None else set().union(*finished.values())
    if wanted <= common:
        return tuple(sorted(wanted, key=int))
    told = "; ".join(f"'{name}' {', '.join(sorted(folds, key=int))}" for name, folds in finished.items())
    lacking = [
        f"fold {', '.join(sorted(missing))} of '{name}'"
        for name, folds in finished.items()
        if (missing := wanted - {*folds})
    ]
    rest = f", or compare what all have: --fold {' '.join(sorted(common, key=int))}" if common else ""
    raise ConfigError(f"not every model has the same finished folds: {told}", fix=f"finish {'; '.join(lacking)}{rest}")


def _candidate(name: str, folder: Path, finished: Mapping[str, Path], folds: tuple[str, ...]) -> Candidate:
    """Loads what there is to know of a candidate, and drops its weights.

    Raises:
        CheckpointError: its folds do not belong together, or COARSE of one is missing.
        ConfigError: it saw what it held out, or there is no record of its trainings.
    """
    loaded = load_models(folder, folds=folds)
    if loaded.coarse and len(loaded.coarse) < len(folds):  # held-out cases are found by COARSE of their own fold
        there = {each.fold for each in loaded.coarse}
        missing = [fold for fold in folds if fold not in there]
        raise CheckpointError(
            f"COARSE of fold {', '.join(missing)} of '{name}' is not finished",
            where=finished[missing[0]],
            fix=f"train it with flaresemi_train COARSE {missing[0]}",
        )
    fine = loaded.fine[0]
    stages = [Stage.FINE, *([Stage.COARSE] if loaded.coarse else [])]
    runs = {fold: tuple(_run(name, ModelFolder(finished[fold] / stage.value)) for stage in stages) for fold in folds}
    for fold, records in runs.items():
        _refuse_seen(name, fold, records, finished[fold])
    workspace = _workspace_of(finished[folds[0]])
    return Candidate(
        name=name,
        folder=folder,
        plan=fine.plan,
        labels=fine.labels,
        channels=fine.channels,
        networks=loaded.networks,
        runs=runs,
        moved=None
        if workspace is None
        else frozenset(each.case_id for each in load_decisions(workspace).on_image_grid),
    )


def _run(name: str, folder: ModelFolder) -> RunRecord:
    if not folder.run_record.is_file():
        raise ConfigError(
            f"nothing says which cases '{name}' was trained on and which it held out: its record is missing",
            where=folder.run_record,
            fix="name the folder that it was trained in: exported models do not say it",
        )
    return load_record(folder.run_record, RunRecord, error=CheckpointError)


def _refuse_seen(name: str, fold: str, runs: Sequence[RunRecord], where: Path) -> None:
    """Checks that no stage was trained on what FINE of the same fold held out."""
    held_out = set(runs[0].validation_cases)
    if not held_out:
        raise ConfigError(f"fold {fold} of '{name}' holds nothing out to compare on", where=where)
    for run in runs:
        if seen := sorted(held_out & {*run.training_cases}):
            raise ConfigError(
                f"{run.stage} of fold {fold} of '{name}' was trained on cases that would judge it: {listed(seen)}",
                where=where,
                fix="train both stages with the same splits.json",
            )


def _refuse_other(first: Candidate, other: Candidate) -> None:
    """Checks that two candidates can be compared.

    Raises:
        ConfigError: they cannot; it says what differs.
    """
    both = f"'{first.name}' and '{other.name}'"
    for field, value, another in (
        ("organs", first.labels, other.labels),
        ("channels", first.channels, other.channels),
    ):
        if value != another:
            what = f"{both} have other {field}, names, values or sides: they were trained on different datasets"
            raise ConfigError(what, fix=_SAME)
    for fold in first.runs:
        _refuse_other_cases(first, other, fold)
    if changed := sorted(_changed(first, other)):
        raise ConfigError(
            f"{len(changed)} case(s) were others when {both} were trained, images or labels: {listed(changed)}",
            fix="train the older one anew",
        )
    if None not in (first.moved, other.moved):
        held_out = frozenset().union(*first.held_out.values())
        if differing := sorted(((first.moved or frozenset()) ^ (other.moved or frozenset())) & held_out):
            raise ConfigError(
                f"label maps are put on their image's grid for one of {both} only: {listed(differing)}",
                fix="plan both with --fix-geometry, or neither",
            )


def _refuse_other_cases(first: Candidate, other: Candidate, fold: str) -> None:
    sides = (
        ("holds out", first.held_out[fold], other.held_out[fold]),
        ("trains on", _real_cases(first.runs[fold][0]), _real_cases(other.runs[fold][0])),
    )
    for verb, ours, theirs in sides:
        if ours != theirs:
            told = [
                f"{listed(sorted(cases))} in '{name}' only"
                for name, cases in ((first.name, ours - theirs), (other.name, theirs - ours))
                if cases
            ]
            raise ConfigError(
                f"fold {fold} {verb} other cases in '{first.name}' than in '{other.name}': {'; '.join(told)}",
                fix=f"{_SAME}: copy that of one workspace into the other before its training",
            )


def _real_cases(run: RunRecord) -> frozenset[str]:
    """The labeled cases that a training saw; those with pseudo-labels are its own affair."""
    known = run.made_from.training if run.made_from is not None else run.training_cases
    return frozenset(known)


def _changed(first: Candidate, other: Candidate) -> Iterator[str]:
    """Cases that were prepared from different files."""
    for fold, runs in first.runs.items():
        origins = [each.made_from for each in (runs[0], other.runs[fold][0])]
        if origins[0] is None or origins[1] is None:
            continue
        ours, theirs = ({**each.held_out, **each.training} for each in origins if each is not None)
        yield from {case for case, version in ours.items() if version and theirs.get(case, "") not in ("", version)}


def _refuse_twice(candidate: Candidate) -> None:
    counts = collections.Counter(case for cases in candidate.held_out.values() for case in cases)
    if twice := sorted(case for case, count in counts.items() if count > 1):
        raise ConfigError(
            f"folds {', '.join(candidate.runs)} hold out the same cases: {listed(twice)}",
            fix="a held-out case counts once: name folds that hold out different cases, or one: --fold 0",
        )


def _workspace_of(fold_folder: Path) -> Workspace | None:
    """The workspace that models lie in; None where they were moved elsewhere."""
    return next((made for each in fold_folder.resolve().parents if (made := Workspace(each)).plans.is_file()), None)


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that tell them apart, without folders that most models lie in."""
    parts = [[part.replace("+", "_") for part in folder.resolve().parts if part not in _USUAL] for folder in folders]
    for count in range(1, max(map(len, parts))):
        names = ["_".join(each[-count:]) for each in parts]
        if len({name.casefold() for name in names}) == len(names):
            return names
    return [f"model_{number}" for number in range(1, len(folders) + 1)]
