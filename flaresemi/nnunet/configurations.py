"""nnU-Net's plans.json and dataset.json as a stage of ours; what cannot be run here is refused by its name.

Source: nnunetv2 2.8.1 (plans_handler.py, label_handling.py, default_normalization_schemes.py).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flaresemi.conventions import Convention
from flaresemi.errors import CheckpointError, FlaresemiError, is_one_line, shown
from flaresemi.labels import Label, LabelSet
from flaresemi.nnunet.architectures import network_plan
from flaresemi.plans import IntensityPlan, Stage, StagePlan

_READERS = {"SimpleITKIO": "file", "NibabelIO": "file", "NibabelIOWithReorient": "ras"}

#: Normalizations that need no numbers; `ZScoreNormalization` is one of two, by `use_mask_for_norm`.
_SCHEMES = {
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}

_RESAMPLING = "resample_data_or_seg_to_shape"
_ORDERS = {"resampling_fn_data": 3, "resampling_fn_probabilities": 1}

_INSTEAD = "predict with nnU-Net itself; its label maps can teach: flaresemi_train --pseudo-labels FOLDER"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One configuration of nnU-Net, in our words."""

    plan: StagePlan
    convention: Convention
    channels: tuple[str, ...]
    labels: LabelSet


def read_configuration(
    plans: Mapping[str, Any], name: str, dataset: Mapping[str, Any], *, where: object
) -> Configuration:
    """What surrounds the networks of a configuration, and what they are.

    Args:
        plans: From plans.json.
        name: Of the configuration, as `3d_fullres`.
        dataset: From dataset.json.
        where: For messages.

    Raises:
        CheckpointError: the files are damaged, or say what cannot be run here; the message names it.
    """
    try:
        configuration = _inherited(plans["configurations"], name)
        _refuse_others(plans, configuration, name, where)
        channels, labels = _channels(dataset), _labels(dataset, where)
        intensities = _intensities(plans, configuration, len(channels), where)
        plan = StagePlan(
            stage=Stage.FINE,
            spacing_zyx_mm=_three(configuration["spacing"], float),
            patch_zyx=_three(configuration["patch_size"], int),
            batch_size=configuration.get("batch_size", 2),
            region="body",
            margin_mm=0.0,
            resampling="spline",
            intensities=intensities,
            network=network_plan(configuration, len(channels), labels.channels, where),
            reasons={},
        )
        convention = Convention(
            orientation=_READERS[_reader(plans)],  # type: ignore[arg-type]
            axes=_three(plans.get("transpose_forward", (0, 1, 2)), int),
        )
    except FlaresemiError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise CheckpointError(
            f"plans.json or dataset.json of this model of nnU-Net cannot be used: {shown(repr(problem), 200)}",
            where=where,
            fix="copy the whole folder of the model again; models of nnU-Net v1 are not read",
        ) from None
    return Configuration(plan=plan, convention=convention, channels=channels, labels=labels)


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
    if configuration.get("previous_stage"):
        raise refuse(f"'{shown(name)}' is the second network of a cascade, which sees the labels of the first")
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


def _labels(dataset: Mapping[str, Any], where: object) -> LabelSet:
    """The labels that the network has an output for: `ignore`, which marks voxels without a label, is none."""
    values = {name: value for name, value in dataset["labels"].items() if name not in ("background", "ignore")}
    if dataset.get("regions_class_order") or any(isinstance(value, list | tuple) for value in values.values()):
        raise CheckpointError(
            "this model of nnU-Net cannot be run here: it was trained with regions, one sigmoid for each",
            where=where,
            fix=_INSTEAD,
        )
    ordered = sorted(values, key=lambda name: int(values[name]))
    if [int(values[name]) for name in ordered] != list(range(1, len(values) + 1)):
        raise ValueError(f"labels must be numbered from 1, found {sorted(values.values())}")
    return LabelSet(labels=tuple(Label(name=name, value=int(values[name])) for name in ordered))


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
