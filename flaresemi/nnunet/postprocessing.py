"""What nnU-Net's cross-validation found to mend its label maps best: largest components, in postprocessing.json.

Source: nnunetv2 2.8.1 (remove_connected_components.py, model_export.py, file_path_utilities.py).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaresemi.errors import CheckpointError, shown
from flaresemi.labels import LabelSet
from flaresemi.nnunet.unpacking import PICKLED, POSTPROCESSING

logger = logging.getLogger(__name__)

#: The only function that nnU-Net chooses.
_LARGEST = "remove_all_but_largest_component_from_segmentation"


def cross_validation(model: Path, folds: Sequence[str]) -> Path | None:
    """The file that says it for an ensemble of these folds; None: there is none, which is told where it may matter."""
    folder = model / f"crossval_results_folds_{'_'.join(sorted(folds))}"
    if (folder / POSTPROCESSING).is_file():
        return folder / POSTPROCESSING
    if (folder / PICKLED).is_file():
        logger.warning(
            "%s is not read, since it may run code, and there is no %s beside it: label maps are those before "
            "postprocessing",
            f"{folder.name}/{PICKLED}",
            POSTPROCESSING,
        )
        return None
    others = sorted(path.parent.name for path in model.glob(f"crossval_results_folds_*/{POSTPROCESSING}"))
    if others:
        logger.info(
            "%s is for other folds than %s: label maps are those before postprocessing",
            f"{others[0]}/{POSTPROCESSING}",
            ", ".join(folds),
        )
    return None


def groups(content: Mapping[str, Any], labels: LabelSet, where: object) -> tuple[tuple[int, ...], ...]:
    """Groups of label indices, of which the largest component is kept, in order.

    Args:
        content: Of postprocessing.json.
        labels: Of the model.
        where: The file, for messages.

    Raises:
        CheckpointError: it is damaged, or asks for something else.
    """
    try:
        functions, arguments = content["postprocessing_fns"], content["postprocessing_kwargs"]
        if any(name != _LARGEST for name in functions):
            raise ValueError(f"it asks for {functions}")
        found = tuple(_indices(each, labels) for _, each in zip(functions, arguments, strict=True))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise CheckpointError(
            f"{POSTPROCESSING} of this model of nnU-Net cannot be used: {shown(repr(problem), 200)}",
            where=where,
            fix="move the folder that it lies in elsewhere: label maps are those before postprocessing then",
        ) from None
    if found:
        told = [" + ".join(labels.class_names[index - 1] for index in group) for group in found]
        logger.info("as nnU-Net's cross-validation found best, the largest piece is kept of: %s", "; ".join(told))
    return found


def _indices(arguments: Mapping[str, Any], labels: LabelSet) -> tuple[int, ...]:
    """The indices of a value, of a region (in JSON a list, too), or of a list of them: all together."""
    if arguments.get("background_label", 0) != labels.background:
        raise ValueError(f"background_label is {arguments['background_label']}")
    found = arguments["labels_or_regions"]
    found = [value for each in (found if isinstance(found, list) else [found])
             for value in (each if isinstance(each, list) else [each])]  # fmt: skip
    if any(value not in labels.known_values or value == labels.background for value in found):
        raise ValueError(f"{found} are no labels")
    values = np.array(found)
    indices = labels.to_indices(values)
    return tuple(sorted(set(indices[labels.to_values(indices) == values].tolist())))  # others are never written
