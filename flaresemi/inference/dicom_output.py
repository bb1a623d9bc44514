"""Predictions as DICOM objects beside their series: which organs, under which names, codes and colors."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flaresemi import __version__
from flaresemi.errors import ConfigError, ImageError, listed
from flaresemi.inference.segmentation import Segmentation
from flaresemi.io.dicom_headers import NOT_CLINICAL, Authorship, DescribedOrgan, DicomFormat, read_headers
from flaresemi.io.dicom_seg import refuse_without_highdicom, write_dicom_seg
from flaresemi.io.rtstruct import is_axial, write_rtstruct
from flaresemi.labels import LabelSet
from flaresemi.organ_codes import OrganCode, codes_of
from flaresemi.records import record_hash
from flaresemi.reporting.palette import organ_color

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DicomOutput:
    """Predictions in a format of DICOM.

    Attributes:
        format: Of the files.
        labels: The organs.
        codes: The user's own for some of them, by name.
        algorithm: Name of the model.
        models: Its networks, see `Segmenter.models`.
        label: The purpose that objects are labeled with.
    """

    format: DicomFormat
    labels: LabelSet
    codes: Mapping[str, OrganCode]
    algorithm: str = "flaresemi"
    models: tuple[str, ...] = ()
    label: str = NOT_CLINICAL

    @property
    def options(self) -> dict[str, str]:
        """All that decides the files besides the labels, by name."""
        codes = record_hash([self.codes[name] for name in sorted(self.codes)] + sorted(self.codes))
        return {"format": self.format, "algorithm": self.algorithm, "label": self.label, "codes": codes}

    def check(self, images: Sequence[Sequence[Path]]) -> None:
        """Checks, before anything is computed, that the predictions of these images can be written.

        Args:
            images: Of each case, one per channel.

        Raises:
            ConfigError: an image is no DICOM series, or what writes the format is not installed.
        """
        files = [paths[0] for paths in images if not paths[0].is_dir()]
        if files:
            raise ConfigError(
                f"--format {self.format} refers to the slices of a DICOM series, and {len(files)} image(s) are files: "
                f"{listed([path.name for path in files])}",
                where=files[0].parent,
                fix="name folders of DICOM slices, or leave --format out",
            )
        if self.format == "dicom-seg":
            refuse_without_highdicom()
        private = [name for name, code in codes_of(self.codes, self.labels.names).items() if code.is_private]
        if private:
            logger.warning(
                'no code is known for %s: a private one is written, which other programs cannot interpret ("codes" in '
                "dataset.json gives others)",
                listed(private),
            )

    def write(self, image: Path, path: Path, segmentation: Segmentation) -> None:
        """Writes a segmentation as an object that belongs to its series.

        Args:
            image: The folder of the series.
            path: The file; it is replaced.
            segmentation: Of that image.

        Raises:
            ImageError: the series cannot be referred to.
            OSError: it cannot be written.
        """
        if not image.is_dir():
            raise ImageError("the image is no DICOM series, to whose slices a DICOM object refers", where=image)
        geometry = segmentation.source.geometry
        headers, organs = read_headers(image, geometry), self._organs()
        origin = Authorship(
            algorithm=self.algorithm,
            version=f"{__version__} {record_hash(self.models)[:16]}",
            models=self.models,
            label=self.label,
        )
        if self.format == "rtstruct":
            if not is_axial(geometry):
                logger.warning(
                    "%s: its slices are not axial; the contours lie in their planes, which some programs cannot read: "
                    "check them there, or use --format dicom-seg",
                    image,
                )
            write_rtstruct(path, segmentation.mask_in_file, headers, geometry, organs, origin)
            return
        indices = np.ascontiguousarray(segmentation.source.to_file(segmentation.indices_zyx))
        masks = segmentation.mask_in_file if self.labels.has_regions else None
        write_dicom_seg(path, indices, masks, headers, geometry, organs, origin)

    def _organs(self) -> tuple[DescribedOrgan, ...]:
        codes = codes_of(self.codes, self.labels.names)
        return tuple(
            DescribedOrgan(
                name=name.replace("\\", "/"),  # which separates texts
                code=codes[name],
                rgb=tuple(round(255 * part) for part in organ_color(number)),  # type: ignore[arg-type]
            )
            for number, name in enumerate(self.labels.names, start=1)
        )
