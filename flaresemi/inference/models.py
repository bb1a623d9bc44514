"""Which checkpoints of a model folder to predict with, and whether they belong together."""

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from flaresemi.errors import CheckpointError
from flaresemi.inference.choice import choice_file, load_choice, place_of
from flaresemi.inference.postprocessing import Cleaning
from flaresemi.networks.checkpoint import Checkpoint, load_checkpoint
from flaresemi.nnunet.results import is_nnunet, load_nnunet
from flaresemi.plans import Stage, StagePlan
from flaresemi.sides import mirroring_caution
from flaresemi.workspace import ModelFolder

logger = logging.getLogger(__name__)

CheckpointName = Literal["final", "best", "latest"]

#: What an export says of itself, beside its models.
DESCRIPTION = "description.json"

_FOLD = re.compile(r"fold_(?P<fold>\d+|all)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModels:
    """The checkpoints of a cascade, one per fold, and the files that FINE's came from."""

    fine: tuple[Checkpoint, ...]
    coarse: tuple[Checkpoint, ...]
    fine_files: tuple[Path, ...]

    @property
    def networks(self) -> tuple[str, ...]:
        """Stage, fold and weights of every network."""
        return tuple(
            f"{each.plan.stage.value} {each.fold} {each.weights_hash[:16]}" for each in (*self.coarse, *self.fine)
        )


def cleaning(fine: Sequence[Checkpoint]) -> Cleaning:
    """How these models, as an ensemble, clean their label maps: what most of them found best."""
    index = fine[0].labels.index
    groups = Counter(group for checkpoint in fine for group in checkpoint.touching)
    names = Counter(name for checkpoint in fine for name in checkpoint.keep_largest)
    convention = fine[0].convention
    return Cleaning(
        together=() if convention is None else convention.largest,
        touching=tuple(tuple(sorted(map(index, group))) for group, count in groups.items() if 2 * count > len(fine)),
        largest=tuple(index(name) for name, count in names.items() if 2 * count > len(fine)),
    )


def load_models(
    folder: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: CheckpointName = "final",
    coarse: Path | None = None,
) -> LoadedModels:
    """As `load_all_models`, where the models of one plan are needed.

    Raises:
        CheckpointError: as there; or `flaresemi_find_best` chose several to be averaged.
    """
    models = load_all_models(folder, folds=folds, checkpoint=checkpoint, coarse=coarse)
    if len(models) > 1:
        places = [str(each.fine_files[0].parents[2]) for each in models]
        raise CheckpointError(
            f"models of {len(models)} plans were chosen to be averaged; here those of one are needed",
            where=folder,
            fix=f"name one of them with -m: {', '.join(places)}",
        )
    return models[0]


def load_all_models(
    folder: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: CheckpointName = "final",
    coarse: Path | None = None,
) -> tuple[LoadedModels, ...]:
    """Loads the checkpoints of a cascade from a folder that may have been moved from another machine.

    Args:
        folder: A workspace, its `models` folder, one `fold_N` of it, or any folder that holds FINE (and COARSE); or a
            results folder of nnU-Net v2, or the archive that it exports; or what `flaresemi_find_best` wrote, which
            names such folders.
        folds: Folds to average. None: `all` where it was trained; otherwise every numbered fold whose FINE is finished.
        checkpoint: Which weights: `final` (after the whole training), `best` or `latest`.
        coarse: Another such folder to take COARSE from; of a cascade of nnU-Net, its first network.

    Returns:
        One entry per plan: several only where `flaresemi_find_best` chose to average them.

    Raises:
        CheckpointError: nothing to predict with, a fold or COARSE is missing, or checkpoints that do not belong
            together; the message lists what was found.
    """
    folder = Path(folder)
    record = choice_file(folder)
    if record is not None:
        if folds is not None or checkpoint != "final" or coarse is not None:
            raise CheckpointError(
                "what flaresemi_find_best chose is taken as it is: folds, weights and COARSE stand in its record",
                where=record,
                fix="leave --fold, --checkpoint and --coarse out, or name the models' own folder with -m",
            )
        return tuple(_chosen_models(record))
    if is_nnunet(folder):
        return (_nnunet_models(folder, folds, checkpoint, coarse),)
    found = _stage_folders(folder)
    chosen = _choose_folds(found, folder, folds, checkpoint)
    fine_files = {fold: _file(found[fold] / Stage.FINE.value, checkpoint) for fold in chosen}
    fine = _load(fine_files)
    plan = next(iter(fine.values())).plan
    if plan.region == "body" and not plan.label_inputs:
        coarse_models: dict[Path, Checkpoint] = {}
    elif coarse is None:
        others = bool(plan.label_inputs) or (folder / DESCRIPTION).is_file()  # was exported together
        coarse_models = _load(_coarse_files(found, folder, chosen, checkpoint, others=others))
    else:
        theirs = _stage_folders(Path(coarse))
        chosen_coarse = [fold for fold in chosen if fold in theirs] or list(theirs)
        coarse_models = _load(_coarse_files(theirs, Path(coarse), chosen_coarse, checkpoint))
    check_together({**fine, **coarse_models})
    _warn_of_sides(next(iter(fine.values())))
    for path, model in {**coarse_models, **fine}.items():
        logger.info("%s of fold %s: %s, iteration %d", model.plan.stage.value, model.fold, path, model.iteration)
    return (LoadedModels(fine=tuple(fine.values()), coarse=tuple(coarse_models.values()), fine_files=tuple(fine)),)


def _chosen_models(record: Path) -> Iterator[LoadedModels]:
    """The models of each plan that was chosen, with the very weights that were compared."""
    choice = load_choice(record)
    for model in choice.chosen_models:
        place = place_of(model, record)
        loaded = load_models(place, folds=choice.folds)
        if loaded.networks != model.networks:
            raise CheckpointError(
                f"the models of '{model.name}' are others than those that were compared",
                where=place,
                fix="compare again with flaresemi_find_best, or name this folder with -m to predict with what is there",
            )
        yield loaded


def trained_folds(folder: Path, stage: Stage = Stage.FINE) -> dict[str, Path]:
    """The folds of a model folder in which a stage is finished, each with the folder of its stages.

    Raises:
        CheckpointError: there is no trained model.
    """
    found = _stage_folders(folder)
    return {fold: path for fold, path in found.items() if _path(path / stage.value, "final").is_file()}


def _nnunet_models(
    folder: Path, folds: Sequence[str] | None, checkpoint: CheckpointName, coarse: Path | None
) -> LoadedModels:
    """The folds of a model of nnU-Net, which sees the whole image, and of the first network where it is a cascade."""
    models = load_nnunet(folder, folds=folds, checkpoint=checkpoint, first=coarse)
    check_together(models)
    for path, model in models.items():
        logger.info("%s of fold %s: %s", model.version, model.fold, path)
    fine = {path: model for path, model in models.items() if model.plan.stage is Stage.FINE}
    first = tuple(model for model in models.values() if model.plan.stage is Stage.COARSE)
    return LoadedModels(fine=tuple(fine.values()), coarse=first, fine_files=tuple(fine))


def _warn_of_sides(model: Checkpoint) -> None:
    """Older versions knew fewer spellings of left and right, and taught the wrong sides in silence."""
    caution = mirroring_caution(model.labels.names, model.labels.mirror_pairs)
    if caution is not None and model.labels.mirror_pairs is not None and 2 in model.mirror_axes:
        logger.warning("these models were trained like this: %s", caution[0])


def check_together(models: dict[Path, Checkpoint]) -> None:
    """Checks that checkpoints can work on one image: same organs and channels; same plan within a stage.

    Raises:
        CheckpointError: it names the two files that differ, and in what.
    """
    first_path, first = next(iter(models.items()))
    first_of_stage: dict[Stage, tuple[Path, Checkpoint]] = {}
    for path, model in models.items():
        other_path, other = first_of_stage.setdefault(model.plan.stage, (path, model))
        shared, expected = _shared(model), _shared(first)
        for field in shared:
            if shared[field] != expected[field]:
                raise _apart(field, first_path, path)
        if model.convention != other.convention:
            raise _apart("convention", other_path, path)
        differing = _differing_fields(other.plan, model.plan)
        if differing:
            raise CheckpointError(
                f"these checkpoints were trained with different plans ({', '.join(differing)})",
                where=f"{other_path} and {path}",
                fix="name folds that were trained with the same plans.json (--fold), or train one of them again",
            )


def _shared(model: Checkpoint) -> dict[str, object]:
    """What is the same in all stages. Components are kept by FINE alone: what is cleaned is compared within a stage."""
    convention = model.convention and dataclasses.replace(model.convention, largest=())
    return {"labels": model.labels, "channels": model.channels, "body": model.body, "convention": convention}


def _apart(field: str, one: Path, other: Path) -> CheckpointError:
    return CheckpointError(
        f"these checkpoints differ in their {field} and cannot be used together",
        where=f"{one} and {other}",
        fix="name folds that were trained on the same dataset and plans (--fold)",
    )


def _differing_fields(one: StagePlan, other: StagePlan) -> list[str]:
    """Names of the fields that matter for prediction and differ."""
    training_only = ("reasons", "batch_size")
    return [
        field.name
        for field in dataclasses.fields(one)
        if field.name not in training_only and getattr(one, field.name) != getattr(other, field.name)
    ]


def _stage_folders(folder: Path) -> dict[str, Path]:
    """Folders that hold FINE or COARSE, by the name of their fold."""
    if not folder.is_dir():
        raise CheckpointError("model folder not found", where=folder, fix="name it with -m MODEL_FOLDER")
    if folder.name in tuple(Stage) and not _holds_stage(folder):
        folder = folder.absolute().parent
    if _holds_stage(folder):
        match = _FOLD.fullmatch(folder.absolute().name)
        return {match["fold"] if match else folder.absolute().name: folder}
    places = [folder, folder / "models", folder / "flaresemi" / "models"]
    for place in places:
        if not place.is_dir():
            continue
        found = {match["fold"]: path for path in place.iterdir() if (match := _FOLD.fullmatch(path.name))}
        found = {fold: path for fold, path in found.items() if _holds_stage(path)}
        if found:
            return {fold: found[fold] for fold in sorted(found, key=lambda fold: (fold == "all", len(fold), fold))}
    raise CheckpointError(
        "no trained model in this folder",
        where=f"{folder} holds {_listing(folder)}",
        fix="expected fold_0/FINE or FINE in it; train one with flaresemi_train FINE 0",
    )


def _holds_stage(folder: Path) -> bool:
    return any((folder / stage.value).is_dir() for stage in Stage)


def _choose_folds(
    found: dict[str, Path], folder: Path, asked: Sequence[str] | None, checkpoint: CheckpointName
) -> list[str]:
    finished = [fold for fold, path in found.items() if _path(path / Stage.FINE.value, checkpoint).is_file()]
    if asked is not None:
        for fold in asked:
            if fold not in found:
                raise CheckpointError(
                    f"no models of fold '{fold}'",
                    where=f"{folder} holds fold {', '.join(found)}",
                    fix="name others with --fold",
                )
        return list(dict.fromkeys(asked))
    if "all" in finished:
        return ["all"]
    if finished:
        return finished
    unfinished = [fold for fold, path in found.items() if (path / Stage.FINE.value).is_dir()]
    # Opening the first one words the complaint: what is there, and what to do.
    _file(found[(unfinished or list(found))[0]] / Stage.FINE.value, checkpoint)
    raise CheckpointError("no FINE model", where=folder)


def _coarse_files(
    found: dict[str, Path], folder: Path, folds: Sequence[str], checkpoint: CheckpointName, *, others: bool = False
) -> dict[str, Path]:
    """COARSE of the chosen folds; one is enough for an ensemble of several. With `others`, else of all there are."""
    everywhere = [fold for fold in found if _path(found[fold] / Stage.COARSE.value, checkpoint).is_file()]
    there = [fold for fold in folds if fold in everywhere] or (everywhere if others else [])
    if not there:
        fold = folds[0]
        hint = f"; COARSE of fold {', '.join(everywhere)} is there" if everywhere else ""
        _file(found[fold] / Stage.COARSE.value, checkpoint, extra=hint)
    if len(there) < len(folds):
        logger.info("COARSE was trained in fold %s only: it finds the organs for all", ", ".join(there))
    return {fold: _path(found[fold] / Stage.COARSE.value, checkpoint) for fold in there}


def _path(folder: Path, checkpoint: CheckpointName) -> Path:
    model = ModelFolder(folder)
    return {"final": model.final, "best": model.best, "latest": model.latest}[checkpoint]


def _file(folder: Path, checkpoint: CheckpointName, extra: str = "") -> Path:
    """The checkpoint of a training that must be there.

    Raises:
        CheckpointError: it is not.
    """
    path = _path(folder, checkpoint)
    if path.is_file():
        return path
    match = _FOLD.fullmatch(folder.absolute().parent.name)
    command = f"flaresemi_train {folder.name} {match['fold'] if match else 0}"
    others: list[CheckpointName] = ["latest", "best", "final"]
    present = [name for name in others if _path(folder, name).is_file()]
    if present:
        raise CheckpointError(
            f"{folder.name} has no {checkpoint} checkpoint ({path.name}); there is: {', '.join(present)}{extra}",
            where=folder,
            fix=f"finish the training with {command} --continue, or predict with --checkpoint {present[0]}",
        )
    raise CheckpointError(
        f"{folder.name} was not trained here: {path.name} is missing{extra}",
        where=f"{folder.parent} holds {_listing(folder.parent)}",
        fix=f"train it with {command}",
    )


def _load(files: dict[str, Path]) -> dict[Path, Checkpoint]:
    return {path: load_checkpoint(path) for path in files.values()}


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
