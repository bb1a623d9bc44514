"""What segments images, whatever networks it holds."""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flaresemi.compute.metering import StepClock
from flaresemi.errors import ImageError, listed
from flaresemi.geometry import FloatTriple
from flaresemi.inference.fine_stage import FineOutput
from flaresemi.inference.segmentation import Segmentation, write_segmentation
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image, read_image
from flaresemi.labels import LabelSet
from flaresemi.networks.engine import Engine
from flaresemi.preprocessing.averaging import KnownLogits

#: Called with the output of FINE, the prepared image in its region (channels, Z, Y, X), the padding value of each
#: channel, and the spacing.
Watch = Callable[[FineOutput, np.ndarray, np.ndarray | None, FloatTriple], None]

#: Called with what the networks of each plan say of an image, once its labels are made, and its grid as they saw it.
Save = Callable[[Sequence[KnownLogits], SourceGrid], None]


class ImageSegmenter(abc.ABC):
    """Whatever segments images: the models of one plan, or of several whose probabilities are averaged.

    Attributes:
        channels: Names of the channels of its images.
        labels: Its organs.
        engine: Computes the networks.
        fine_files: Where those that segment were loaded from; empty when they were not.
        models: Stage, fold and weights of every network that was loaded.
        options: All else that decides the labels, by name.
        temperatures: What the probabilities of each plan are calibrated by, where they are saved; None: by nothing.
    """

    channels: tuple[str, ...]
    labels: LabelSet
    engine: Engine
    fine_files: tuple[Path, ...]
    models: tuple[str, ...]
    options: dict[str, str]
    temperatures: tuple[float | None, ...]

    @abc.abstractmethod
    def segment(
        self,
        image: Image,
        *,
        watch: Watch | None = None,
        save: Save | None = None,
        name: str = "",
        strict: bool = False,
    ) -> Segmentation:
        """Finds and segments the organs of an image.

        An image that training data would be warned of, or that is far from them, is warned of; the warnings are in the
        result, too.

        Args:
            image: In canonical orientation, as `read_image` gives it.
            watch: Is called with the output of FINE before it is brought back to the image's grid.
            save: Is called with the logits that the labels were made from.
            name: For the warnings.
            strict: Refuse such an image instead, before any network runs.

        Raises:
            ValueError: the image has other channels than the model.
            ImageError: it takes more memory than is free at the networks' spacing.
            PredictionError: the networks' output is not finite.
            UnusualImageError: the image is refused.
        """

    def predict_file(self, images: Sequence[Path], output: Path, *, strict: bool = False) -> Segmentation:
        """Segments an image file (one per channel) and writes the label map on the same grid.

        Args:
            strict: Refuse what `segment` warns of.

        Raises:
            ImageError: the image cannot be read, has other channels than the model, or is refused.
        """
        clock = StepClock()
        with clock("read"):
            image = self.read(images)
        segmentation = self.segment(image, name=images[0].name, strict=strict)
        with clock("write"):
            write_segmentation(output, segmentation)
        seconds = {"read": clock.seconds["read"], **segmentation.seconds, "write": clock.seconds["write"]}
        return dataclasses.replace(segmentation, seconds=seconds)

    def read(self, images: Sequence[Path]) -> Image:
        """Reads an image file (one per channel) for this model.

        Raises:
            ImageError: the image cannot be read, or has other channels than the model.
        """
        return self.checked(read_image(images), images)

    def checked(self, image: Image, images: Sequence[Path]) -> Image:
        """An image that was read for this model.

        Raises:
            ImageError: it has other channels than the model.
        """
        if image.array_czyx.shape[0] != len(self.channels):
            raise ImageError(
                f"the image has {image.array_czyx.shape[0]} channel(s), the model was trained with "
                f"{len(self.channels)}: {listed(self.channels)}",
                where=images[0],
                fix="give one file per channel: CASE_0000, CASE_0001, ...",
            )
        return image
