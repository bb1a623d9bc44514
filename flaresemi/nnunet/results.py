"""A results folder of nnU-Net v2, or the archive that it exports, as checkpoints of ours.

Read are plans.json, dataset.json and fold_N/checkpoint_final.pth, as data: no code in them is run, and of the
checkpoint nothing but tensors is used. postprocessing.pkl is not opened.
"""

import contextlib
import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from flaresemi.errors import CheckpointError, listed, shown
from flaresemi.files import read_text
from flaresemi.networks.archive import read_tensors
from flaresemi.networks.checkpoint import Checkpoint, refuse_not_finite
from flaresemi.nnunet.architectures import our_weights
from flaresemi.nnunet.configurations import Configuration, read_configuration
from flaresemi.records import parse_json

logger = logging.getLogger(__name__)

#: nnU-Net's names of what our command calls final, best and latest.
CHECKPOINTS = {
    "final": "checkpoint_final.pth",
    "best": "checkpoint_best.pth",
    "latest": "checkpoint_latest.pth",
}

_FOLD = re.compile(r"fold_(?P<fold>\d+|all)")
_MODEL = re.compile(r"(?P<trainer>.+)__(?P<plans>.+)__(?P<configuration>[^_].*)")
_JSON = ("plans.json", "dataset.json")

#: The configuration that is taken where a folder or archive holds several.
_USUAL = "3d_fullres"

#: What an archive may unpack to. Chosen: weights hardly shrink, text by ten.
_MOST_RATIO = 50
_MOST_JSON_BYTES = 64 << 20

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
    """Whether a path is a model of nnU-Net: its archive (.zip), or a folder that holds trained configurations."""
    if path.is_file():
        return path.suffix.lower() == ".zip"
    return path.is_dir() and bool(_models_below(path))


def load_nnunet(path: Path, *, folds: Sequence[str] | None = None, checkpoint: str = "final") -> dict[Path, Checkpoint]:
    """The folds of one configuration.

    Args:
        path: The folder of the configuration (`TRAINER__PLANS__CONFIGURATION`), of its dataset or of all results, or
            the archive that nnUNetv2_export_model_to_zip wrote.
        folds: Which; None: all that are finished.
        checkpoint: Which weights, one of `CHECKPOINTS`.

    Returns:
        By the file that each came from.

    Raises:
        CheckpointError: there is no such model, it is damaged, or one that cannot be run here.
    """
    with _unpacked(path) if path.is_file() else contextlib.nullcontext(path) as folder:
        model = _choose(_models_below(folder), path)
        found = {match["fold"]: file for file in _checkpoints(model) if (match := _FOLD.fullmatch(file.parent.name))}
        chosen = _folds(found, path, folds, CHECKPOINTS[checkpoint])
        plans, dataset = (_json(model / name) for name in _JSON)
        name = _configuration_name(model)
        configuration = read_configuration(plans, name, dataset, where=path / name if path.is_dir() else path)
        models = {}
        for fold in chosen:
            file = model / f"fold_{fold}" / CHECKPOINTS[checkpoint]
            shown_file = path / file.relative_to(folder)
            models[shown_file] = _fold(file, fold, configuration, shown_file)
        return models


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
    plans, dataset = (_json(model / name) for name in _JSON)
    match = _FOLD.fullmatch(path.absolute().parent.name)
    configuration = read_configuration(plans, _configuration_name(model), dataset, where=model)
    return _fold(path, match["fold"] if match else "all", configuration, path)


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
    return [place for place in places if all((place / name).is_file() for name in _JSON) and _checkpoints(place)]


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


def _choose(models: Sequence[Path], path: Path) -> Path:
    if not models:
        raise CheckpointError(
            "no trained model of nnU-Net v2 in this archive",
            where=path,
            fix="expected DATASET/TRAINER__PLANS__CONFIGURATION with plans.json, dataset.json and "
            "fold_0/checkpoint_final.pth",
        )
    usual = [model for model in models if model.name.endswith(f"__{_USUAL}")]
    if len(models) == 1 or len(usual) == 1:
        chosen = models[0] if len(models) == 1 else usual[0]
        if len(models) > 1:
            logger.info("of %d models of nnU-Net, %s is taken (others: name their folder)", len(models), chosen.name)
        return chosen
    names = [f"{model.parent.name}/{model.name}" for model in models]
    raise CheckpointError(
        f"{len(models)} models of nnU-Net are here: {listed(names)}", where=path, fix="name the folder of one with -m"
    )


def _folds(found: Mapping[str, Path], path: Path, asked: Sequence[str] | None, name: str) -> list[str]:
    there = [fold for fold, file in found.items() if (file.parent / name).is_file()]
    missing = [fold for fold in asked or () if fold not in there]
    if missing or not there:
        raise CheckpointError(
            f"no {name} of fold {', '.join(missing)}" if missing else f"no fold has its {name}",
            where=f"{path} has it of fold {', '.join(there) or 'none'}",
            fix="name others with --fold, or other weights with --checkpoint best or latest",
        )
    if asked is not None:
        return list(dict.fromkeys(asked))
    return [fold for fold in there if fold != "all"] or ["all"]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
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


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """What prediction needs of an archive, in a folder for as long as it is read.

    Raises:
        CheckpointError: it is damaged, names places outside of itself, or unpacks to far more than it is.
    """
    with tempfile.TemporaryDirectory(prefix="flaresemi_") as temporary:
        try:
            with zipfile.ZipFile(path) as archive:
                needed = _entries(archive, path)
                for entry, place in needed.items():
                    target = Path(temporary, *place)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as source, open(target, "wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
        except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as problem:
            raise CheckpointError(
                f"this archive is damaged: {shown(str(problem), 200)}", where=path, fix="copy it again"
            ) from None
        yield Path(temporary)


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[zipfile.ZipInfo, tuple[str, ...]]:
    """The entries that are needed, and where they belong."""
    needed: dict[zipfile.ZipInfo, tuple[str, ...]] = {}
    for entry in archive.infolist():
        place = PurePosixPath(entry.filename)
        link = entry.external_attr >> 28 == 0xA
        if place.is_absolute() or ".." in place.parts or "\\" in entry.filename or ":" in entry.filename or link:
            raise CheckpointError(
                f"this archive would write outside of its folder: {shown(entry.filename)}",
                where=path,
                fix="it is no export of nnU-Net: get the model again from whom you trust",
            )
        wanted = place.name in _JSON or (place.name in CHECKPOINTS.values() and _FOLD.fullmatch(place.parent.name))
        if not wanted or entry.is_dir():
            continue
        most = _MOST_JSON_BYTES if place.name in _JSON else _MOST_RATIO * entry.compress_size + (1 << 20)
        if entry.file_size > most:
            raise CheckpointError(
                f"this archive unpacks to far more than weights do: {shown(entry.filename)} from "
                f"{entry.compress_size} to {entry.file_size} bytes",
                where=path,
                fix="it is no export of nnU-Net: get the model again from whom you trust",
            )
        if place.parts in needed.values():
            raise CheckpointError(f"this archive holds {shown(entry.filename)} twice", where=path, fix="copy it again")
        needed[entry] = place.parts
    return needed
