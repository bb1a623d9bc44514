"""Prediction of one image as one function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaresemi.inference.averaging import load_segmenter


def predict(
    image: str | Path | Sequence[str | Path],
    model_folder: str | Path,
    output: str | Path | None = None,
    *,
    strict: bool = False,
    **options: Any,
) -> np.ndarray:
    """Segments one image.

    To segment many, make a `Segmenter` once and call it for each. Reasons not to trust the result (an image that is not
    in HU, or far from the training data) are logged as warnings; `Segmenter.segment` also returns them, as
    `findings`.

    Args:
        image: The image file or folder of DICOM slices; a sequence of them, one per channel, when the model has
            several channels.
        model_folder: A workspace or `models` folder, or one fold of it; or what `flaresemi_find_best` wrote.
        output: Also write the label map here.
        strict: Refuse images with warnings.
        options: As for `Segmenter.load`: folds, checkpoint, coarse, and those of `Segmenter`.

    Returns:
        The label map with the user's values, (Z, Y, X) in the file's own axis order, like
        `SimpleITK.GetArrayFromImage` gives the image.

    Raises:
        ImageError: the image cannot be read, has other channels than the model, or is refused.
        CheckpointError: no models, or models that do not belong together.

    Example:
        >>> from flaresemi.inference import predict
        >>> label_map = predict("scan.nii.gz", "flaresemi/models", "scan_organs.nii.gz")
        >>> label_map.shape
        (24, 32, 40)
    """
    paths = [Path(image)] if isinstance(image, str | Path) else [Path(path) for path in image]
    segmenter = load_segmenter(Path(model_folder), **options)
    if output is None:
        return segmenter.segment(segmenter.read(paths), name=paths[0].name, strict=strict).file_array
    return segmenter.predict_file(paths, Path(output), strict=strict).file_array
