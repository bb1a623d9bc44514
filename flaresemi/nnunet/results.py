"""A results folder of nnU-Net v2, or the archive that it exports, as checkpoints of ours.

Read are plans.json, dataset.json, fold_N/checkpoint_final.pth and postprocessing.json, as data: no code in them is
run, and of the checkpoint nothing but tensors is used. postprocessing.pkl is not opened.
"""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from flaresemi.errors import CheckpointError, listed, shown
from flaresemi.files import read_text
from flaresemi.networks.archive import read_tensors
from flaresemi.networks.checkpoint import Checkpoint, refuse_not_finite
from flaresemi.nnunet.architectures import our_weights
from flaresemi.nnunet.configurations import Configuration, read_configuration
from flaresemi.nnunet.postprocessing import cross_validation, groups
from flaresemi.nnunet.unpacking import CHECKPOINTS, FOLD, JSON, MOST_JSON_BYTES, unpacked
from flaresemi.plans import Stage
from flaresemi.records import parse_json

logger = logging.getLogger(__name__)

_MODEL = re.compile(r"(?P<before>.+__.+__)(?P<configuration>[^_].*)")

#: The configurations of which one is taken where a folder or archive holds several: the first that is there.
_USUAL = ("3d_fullres", "3d_cascade_fullres", "3d_lowres")

#: Steps of an epoch, unless a trainer says otherwise.
_STEPS = 250


class _Left:
    """Stands for what numpy wrote into a checkpoint: scores of its training, which prediction does not need."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _left(*_: object) -> _Left:
    return _Left()


_STAND_INS: Mapping[str, Any] = {
    "numpy.dtype": _Left,
    "numpy.ndarray": _Left,
    **{f"numpy.{core}.multiarray.{name}": _left for core in ("core", "_core") for name in ("scalar", "_reconstruct")},
}


def is_nnunet(path: Path) -> bool:
    """Whether a path is a model of nnU-Net: its archive (.zip), a folder that holds trained configurations, or one."""
    archive, _ = _parts(path)
    return archive is not None or (path.is_dir() and bool(_models_below(path)))


def load_nnunet(
    path: Path,
    *,
    folds: Sequence[str] | None = None,
    checkpoint: str = "final",
    first: Path | None = None,
    alone: bool = False,
) -> dict[Path, Checkpoint]:
    """The folds of one configuration, and those of the network before it where it is the second of a cascade.

    Args:
        path: The folder of the configuration (`TRAINER__PLANS__CONFIGURATION`), of its dataset or of all results, or
            the archive that nnUNetv2_export_model_to_zip wrote, or such a folder as a place in the archive.
        folds: Which; None: all that are finished.
        checkpoint: Which weights, one of `CHECKPOINTS`.
        first: Another such path, of the first network of a cascade; None: it lies beside the second.
        alone: The second network of a cascade without the first.

    Returns:
        By the file that each came from; the first network of a cascade is COARSE.

    Raises:
        CheckpointError: there is no such model, it is damaged, or one that cannot be run here.
    """
    with _opened(path) as (model, root):
        configuration = _configuration(model, root.shown(model))
        models = _folds_of(model, configuration, root, folds, checkpoint)
        if configuration.previous is None and first is not None:
            raise CheckpointError(
                "this model of nnU-Net needs no COARSE: it sees the whole image", where=first, fix="leave --coarse out"
            )
        if configuration.previous is None or alone:
            return models
        chosen = [each.fold for each in models.values()]
        if first is None:
            return models | _first(_beside(model, configuration.previous, root), root, chosen, checkpoint)
    with _opened(first, configuration.previous) as (model, root):
        return models | _first(model, root, chosen, checkpoint)


@dataclasses.dataclass(frozen=True, slots=True)
class _Root:
    """Where an archive was unpacked to; the folder is gone soon. Without one, places are called as they are."""

    archive: Path | None = None
    folder: Path = Path()

    def shown(self, place: Path) -> Path:
        return place if self.archive is None else self.archive / place.relative_to(self.folder)


@contextlib.contextmanager
def _opened(path: Path, wanted: str | None = None) -> Iterator[tuple[Path, _Root]]:
    """The folder of the one configuration that a path means, for as long as it is read.

    Args:
        path: As for `load_nnunet`.
        wanted: The configuration that it must be, if there are several.
    """
    archive, inside = _parts(path)
    if archive is None:
        yield _choose(_models_below(path), path, wanted), _Root()
        return
    with unpacked(archive) as folder:
        yield _choose(_models_below(folder / inside), path, wanted), _Root(archive, folder)


def _parts(path: Path) -> tuple[Path | None, Path]:
    """The archive that a path is or lies in, and the place in it."""
    for place in (path, *path.parents):
        if place.suffix.lower() == ".zip" and place.is_file():
            return place, path.relative_to(place)
    return None, path


def _configuration(model: Path, where: Path, stage: Stage = Stage.FINE) -> Configuration:
    plans, dataset = (_json(model / name) for name in JSON)
    return read_configuration(plans, _configuration_name(model), dataset, where=where, stage=stage)


def _folds_of(
    model: Path, configuration: Configuration, root: _Root, folds: Sequence[str] | None, checkpoint: str
) -> dict[Path, Checkpoint]:
    name = CHECKPOINTS[checkpoint]
    chosen = _folds(_finished(model, name), root.shown(model), folds, name)
    if configuration.plan.stage is Stage.FINE:
        configuration = _with_postprocessing(configuration, model, chosen, root)
    files = {fold: model / f"fold_{fold}" / name for fold in chosen}
    return {root.shown(file): _fold(file, fold, configuration, root.shown(file)) for fold, file in files.items()}


def _with_postprocessing(configuration: Configuration, model: Path, folds: Sequence[str], root: _Root) -> Configuration:
    file = cross_validation(model, folds)
    if file is None:
        return configuration
    largest = groups(_json(file), configuration.labels, root.shown(file))
    return dataclasses.replace(configuration, convention=dataclasses.replace(configuration.convention, largest=largest))


def _beside(model: Path, previous: str, root: _Root) -> Path:
    """The folder of a cascade's first network: its trainer and plans are those of the second."""
    match = _MODEL.fullmatch(model.absolute().name)
    before = match["before"] if match is not None else "nnUNetTrainer__nnUNetPlans__"
    found = model.absolute().parent / f"{before}{previous}"
    if all((found / name).is_file() for name in JSON) and _checkpoints(found):
        return found
    raise CheckpointError(
        f"this is the second network of a cascade, and the first, {shown(found.name)}, is not there",
        where=root.shown(model),
        fix="put its folder beside this one (or into the archive), or name it with --coarse",
    )


def _first(model: Path, root: _Root, folds: Sequence[str], checkpoint: str) -> dict[Path, Checkpoint]:
    """The first network of a cascade: of the folds of the second or, where it has none of them, of all."""
    configuration = _configuration(model, root.shown(model), Stage.COARSE)
    there = _finished(model, CHECKPOINTS[checkpoint])
    chosen = [fold for fold in folds if fold in there]
    if 0 < len(chosen) < len(folds):
        logger.info("%s is there of fold %s only", model.name, ", ".join(chosen))
    return _folds_of(model, configuration, root, chosen or None, checkpoint)


def _fold(file: Path, fold: str, configuration: Configuration, where: Path) -> Checkpoint:
    content = _content(file, where)
    weights, axes = content["network_weights"], content.get("inference_allowed_mirroring_axes")
    _check(weights, axes, where)
    steps = _STEPS * max(content["current_epoch"], 1) if isinstance(content.get("current_epoch"), int) else _STEPS
    ours = our_weights(weights, configuration.plan.network, where)
    refuse_not_finite(ours, where)
    trainer = content.get("trainer_name")
    return Checkpoint(
        plan=configuration.plan,
        body="nonzero",
        channels=configuration.channels,
        labels=configuration.labels,
        fold=fold,
        iteration=steps,
        total_iterations=steps,
        weights=ours,
        mirror_axes=tuple(axes or ()),
        convention=configuration.convention,
        version=f"nnU-Net {shown(trainer) if isinstance(trainer, str) else ''}".strip(),
    )


def load_nnunet_weights(path: Path) -> Checkpoint:
    """One checkpoint file of nnU-Net with the plans beside its folder, to start a training from.

    Raises:
        CheckpointError: as `load_nnunet`.
    """
    model = path.absolute().parent.parent
    match = FOLD.fullmatch(path.absolute().parent.name)
    return _fold(path, match["fold"] if match else "all", _configuration(model, model), path)


def _content(file: Path, where: Path) -> dict[str, Any]:
    content = read_tensors(file, _STAND_INS, mapped=True)
    if not isinstance(content, dict) or "network_weights" not in content:
        raise CheckpointError("not a checkpoint of nnU-Net v2", where=where, fix="name the folder of a trained model")
    return content


def _check(weights: object, axes: object, where: Path) -> None:
    whole = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is not None
        for name, tensor in weights.items()
    )
    known = axes is None or (isinstance(axes, tuple | list) and all(axis in (0, 1, 2) for axis in axes))
    if not whole or not known:
        raise CheckpointError(
            "damaged checkpoint of nnU-Net: weights must be tensors with names, mirrored axes numbers from 0 to 2",
            where=where,
            fix="copy it again",
        )


def _models_below(folder: Path) -> list[Path]:
    """The folders of trained configurations: this one, or up to two levels below."""
    places = [folder, *sorted(folder.glob("*__*__*")), *sorted(folder.glob("Dataset*/*__*__*"))]
    return [place for place in places if all((place / name).is_file() for name in JSON) and _checkpoints(place)]


def _checkpoints(model: Path) -> list[Path]:
    return [file for name in CHECKPOINTS.values() for file in sorted(model.glob(f"fold_*/{name}"))]


def _configuration_name(model: Path) -> str:
    """The configuration, by the folder's name or, where it was renamed, by what a checkpoint says."""
    match = _MODEL.fullmatch(model.absolute().name)
    if match is not None:
        return match["configuration"]
    file = _checkpoints(model)[0]
    arguments = _content(file, file).get("init_args")
    name = arguments.get("configuration") if isinstance(arguments, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(
            "nothing says which configuration of nnU-Net this is",
            where=model,
            fix="call the folder as nnU-Net does: nnUNetTrainer__nnUNetPlans__3d_fullres",
        )
    return name


def _choose(models: Sequence[Path], path: Path, wanted: str | None) -> Path:
    if not models:
        raise CheckpointError(
            "no trained model of nnU-Net v2 here",
            where=path,
            fix="expected DATASET/TRAINER__PLANS__CONFIGURATION with plans.json, dataset.json and "
            "fold_0/checkpoint_final.pth",
        )
    if len(models) == 1:
        return models[0]
    for configuration in _USUAL if wanted is None else (wanted,):
        usual = [model for model in models if model.name.endswith(f"__{configuration}")]
        if len(usual) == 1:
            logger.info("of %d models of nnU-Net, %s is taken (others: name their folder)", len(models), usual[0].name)
            return usual[0]
        if usual:
            break
    names = [f"{model.parent.name}/{model.name}" for model in models]
    raise CheckpointError(
        f"{len(models)} models of nnU-Net are here: {listed(names)}",
        where=path,
        fix="name the folder of one, also in an archive: model.zip/DATASET/TRAINER__PLANS__CONFIGURATION",
    )


def _finished(model: Path, name: str) -> list[str]:
    """The folds that have a checkpoint of this name."""
    files = sorted(model.glob(f"fold_*/{name}"))
    return [match["fold"] for file in files if (match := FOLD.fullmatch(file.parent.name))]


def _folds(there: Sequence[str], model: Path, asked: Sequence[str] | None, name: str) -> list[str]:
    missing = [fold for fold in asked or () if fold not in there]
    if missing or not there:
        raise CheckpointError(
            f"no {name} of fold {', '.join(missing)}" if missing else f"no fold has its {name}",
            where=f"{model} has it of fold {', '.join(there) or 'none'}",
            fix="name others with --fold, or other weights with --checkpoint best or latest",
        )
    if asked is not None:
        return list(dict.fromkeys(asked))
    return [fold for fold in there if fold != "all"] or ["all"]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ValueError("it is too large")
        value = parse_json(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"no {path.name} beside this checkpoint of nnU-Net", where=path, fix="copy the whole folder of the model"
        ) from None
    except ValueError as problem:
        raise CheckpointError(f"damaged {path.name}: {shown(str(problem), 200)}", where=path) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"damaged {path.name}: expected a table", where=path)
    return value
