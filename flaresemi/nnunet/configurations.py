"""nnU-Net's plans.json and dataset.json as a stage of ours; what cannot be run here is refused by its name.

Source: nnunetv2 2.8.1 (plans_handler.py, label_handling.py, default_normalization_schemes.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaresemi.conventions import Convention
from flaresemi.errors import CheckpointError, FlaresemiError, is_one_line, shown
from flaresemi.labels import Label, LabelSet
from flaresemi.nnunet.architectures import network_plan
from flaresemi.plans import IntensityPlan, Stage, StagePlan
from flaresemi.region_order import checked_order

_READERS = {"SimpleITKIO": "file", "NibabelIO": "file", "NibabelIOWithReorient": "ras"}

#: Normalizations that need no numbers; `ZScoreNormalization` is one of two, by `use_mask_for_norm`.
_SCHEMES = {
    "NoNormalization": "as_is",
    "RescaleTo01Normalization": "min_max",
    "RGBTo01Normalization": "rgb_to_0_1",
}

_RESAMPLING = "resample_data_or_seg_to_shape"
_ORDERS = {"resampling_fn_data": 3, "resampling_fn_probabilities": 1}

_INSTEAD = "predict with nnU-Net itself; its label maps can teach: flaresemi_train --pseudo-labels FOLDER"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One configuration of nnU-Net, in our words.

    Attributes:
        previous: The configuration of the first network, where this is the second of a cascade.
    """

    plan: StagePlan
    convention: Convention
    channels: tuple[str, ...]
    labels: LabelSet
    previous: str | None


def read_configuration(
    plans: Mapping[str, Any], name: str, dataset: Mapping[str, Any], *, where: object, stage: Stage = Stage.FINE
) -> Configuration:
    """What surrounds the networks of a configuration, and what they are.

    Args:
        plans: From plans.json.
        name: Of the configuration, as `3d_fullres`.
        dataset: From dataset.json.
        where: For messages.
        stage: What it becomes: COARSE for the first network of a cascade.

    Raises:
        CheckpointError: the files are damaged, or say what cannot be run here; the message names it.
    """
    try:
        configuration = _inherited(plans["configurations"], name)
        _refuse_others(plans, configuration, name, where)
        channels, (labels, painted) = _channels(dataset), _labels(dataset, where)
        intensities = _intensities(plans, configuration, len(channels), where)
        previous = configuration.get("previous_stage")
        label_inputs = len(labels.known_values) - 1 if previous else 0
        plan = StagePlan(
            stage=stage,
            spacing_zyx_mm=_three(configuration["spacing"], float),
            patch_zyx=_three(configuration["patch_size"], int),
            batch_size=configuration.get("batch_size", 2),
            region="body",
            margin_mm=0.0,
            resampling="spline",
            intensities=intensities,
            network=network_plan(configuration, len(channels) + label_inputs, len(painted) or labels.channels, where),
            reasons={},
            label_inputs=label_inputs,
        )
        convention = Convention(
            orientation=_READERS[_reader(plans)],  # type: ignore[arg-type]
            axes=_three(plans.get("transpose_forward", (0, 1, 2)), int),
            painted=painted,
        )
    except FlaresemiError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise CheckpointError(
            f"plans.json or dataset.json of this model of nnU-Net cannot be used: {shown(repr(problem), 200)}",
            where=where,
            fix="copy the whole folder of the model again; models of nnU-Net v1 are not read",
        ) from None
    return Configuration(
        plan=plan,
        convention=convention,
        channels=channels,
        labels=labels,
        previous=None if not previous else str(previous),
    )


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it takes over from others."""
    chain = [name]
    while "inherits_from" in configurations[chain[-1]]:
        parent = configurations[chain[-1]]["inherits_from"]
        if parent in chain:
            raise ValueError(f"configurations {chain} inherit from each other")
        chain.append(parent)
    merged: dict[str, Any] = {}
    for each in reversed(chain):
        merged |= configurations[each]
    return merged


def _reader(plans: Mapping[str, Any]) -> str:
    return str(plans.get("image_reader_writer", "SimpleITKIO"))


def _refuse_others(plans: Mapping[str, Any], configuration: Mapping[str, Any], name: str, where: object) -> None:
    """Refuses what is computed otherwise than here."""

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"this model of nnU-Net cannot be run here: {what}", where=where, fix=_INSTEAD)

    if len(configuration["patch_size"]) != 3:
        raise refuse(f"'{shown(name)}' works on 2D slices")
    if _reader(plans) not in _READERS:
        raise refuse(f"it reads images with {shown(_reader(plans))}")
    for key, usual in (("preprocessor_name", "DefaultPreprocessor"), ("label_manager", "LabelManager")):
        found = configuration.get(key, plans.get(key, usual))
        if found != usual:
            raise refuse(f"{key} is {shown(str(found))}")
    for key, order in _ORDERS.items():
        found, arguments = configuration.get(key, _RESAMPLING), configuration.get(f"{key}_kwargs", {})
        expected = {"is_seg": False, "order": order, "order_z": 0, "force_separate_z": None}
        if found != _RESAMPLING or any(arguments.get(each, value) != value for each, value in expected.items()):
            raise refuse(f"{key} is {shown(str(found))} with {shown(str(dict(arguments)))}")


def _channels(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    names = dataset["channel_names"] if "channel_names" in dataset else dataset["modality"]
    channels = tuple(str(names[key]) for key in sorted(names, key=int))
    if not channels or not all(is_one_line(channel) for channel in channels):
        raise ValueError("channel_names must be names")
    return channels


def _labels(dataset: Mapping[str, Any], where: object) -> tuple[LabelSet, tuple[int, ...]]:
    """The labels, and what each output of a network paints that was trained with regions.

    `ignore`, which marks voxels without a label, is none of them.
    """
    values = {
        name: [int(each) for each in (value if isinstance(value, list | tuple) else [value])]
        for name, value in dataset["labels"].items()
        if name not in ("background", "ignore")
    }
    if any(len(each) > 1 for each in values.values()):
        return _regions(values, dataset.get("regions_class_order"), where)
    ordered = sorted(values, key=lambda name: values[name])
    if [values[name] for name in ordered] != [[i] for i in range(1, len(values) + 1)]:
        raise ValueError(f"labels must be numbered from 1, found {sorted(values.values())}")
    return LabelSet(labels=tuple(Label(name=name, value=values[name][0]) for name in ordered)), ()


def _regions(values: Mapping[str, Sequence[int]], order: object, where: object) -> tuple[LabelSet, tuple[int, ...]]:
    """Regions in the order of the file, which is that of the outputs."""
    labels = LabelSet(
        labels=tuple(Label(name=name, value=each[0], more_values=tuple(each[1:])) for name, each in values.items())
    )
    labels = dataclasses.replace(labels, written_values=checked_order(labels, order))
    written = np.array(labels.written_values)
    painted = labels.to_indices(written)
    if not painted.all() or (labels.to_values(painted) != written).any():
        raise CheckpointError(
            f"this model of nnU-Net cannot be run here: its regions_class_order {written.tolist()} writes a value that "
            "is no label, or two values that are parts of the same regions",
            where=where,
            fix=_INSTEAD,
        )
    return labels, tuple(painted.tolist())


def _intensities(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], channels: int, where: object
) -> tuple[IntensityPlan, ...]:
    schemes, masked = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if not len(schemes) == len(masked) == channels:
        raise ValueError(f"{len(schemes)} normalization_schemes for {channels} channels")
    return tuple(_intensity(plans, *each, where) for each in zip(range(channels), schemes, masked, strict=True))


def _intensity(plans: Mapping[str, Any], channel: int, scheme: str, masked: bool, where: object) -> IntensityPlan:
    if scheme == "CTNormalization":
        facts = plans["foreground_intensity_properties_per_channel"][str(channel)]
        return IntensityPlan(
            scheme="ct",
            clip_low=float(facts["percentile_00_5"]),
            clip_high=float(facts["percentile_99_5"]),
            mean=float(facts["mean"]),
            sd=max(float(facts["std"]), 1e-6),
        )
    if scheme == "ZScoreNormalization":
        return IntensityPlan(scheme="zscore_nonzero" if masked else "zscore_crop")
    if scheme not in _SCHEMES:
        raise CheckpointError(
            f"this model of nnU-Net cannot be run here: {shown(scheme)} normalizes its images",
            where=where,
            fix=_INSTEAD,
        )
    return IntensityPlan(scheme=_SCHEMES[scheme])  # type: ignore[arg-type]


def _three(values: Sequence[Any], kind: type) -> tuple[Any, Any, Any]:
    z, y, x = (kind(value) for value in values)
    return z, y, x
