"""Probabilities and uncertainty of a prediction as files on the image's grid, in bounded memory."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from flaresemi.case_names import case_file
from flaresemi.files import content_hash
from flaresemi.geometry import BoundingBox
from flaresemi.io.grids import SourceGrid
from flaresemi.io.shares import Bits, Extent, holds_shares, share_file, stored_type
from flaresemi.labels import LabelSet
from flaresemi.preprocessing.averaging import KnownLogits, box_of, mean_probabilities
from flaresemi.ranges import Range

#: Folders beside the label maps.
PROBABILITIES, UNCERTAINTY = "probabilities", "uncertainty"

#: Planes of background that are written at a time. Chosen: a few MB.
_BLANK_PLANES = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SavedProbabilities:
    """What was saved of one image.

    Attributes:
        bits: Of a probability.
        extent: What the files of probabilities cover; the uncertainty's always covers the image.
        temperatures: What the probabilities of each plan were calibrated by; None: by nothing.
        files: Hashes of the files, by their paths from the folder of the label map.
    """

    bits: Bits
    extent: Extent
    temperatures: tuple[Annotated[float, Range(0, 1000, above=True)] | None, ...] = (None,)
    files: dict[str, str]

    def __post_init__(self) -> None:
        for name in self.files:
            folder, *rest = name.split("/")
            if folder not in (PROBABILITIES, UNCERTAINTY) or not rest or ".." in rest:
                raise ValueError(f"'files' names '{name}', which is no file of probabilities or uncertainty")

    def part(self, folder: str) -> dict[str, str]:
        """The files in one of the folders."""
        return {name: content for name, content in self.files.items() if name.startswith(f"{folder}/")}

    def with_other(self, earlier: "SavedProbabilities") -> "SavedProbabilities":
        """Both together, where they are of one prediction and temperature: of what both have, this."""
        if self.temperatures != earlier.temperatures:
            return self
        own = self if self.part(PROBABILITIES) else earlier
        files = (self.part(folder) or earlier.part(folder) for folder in (PROBABILITIES, UNCERTAINTY))
        merged = {name: content for each in files for name, content in each.items()}
        return dataclasses.replace(self, bits=own.bits, extent=own.extent, files=merged)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityOutput:
    """What of the probabilities shall be saved.

    Attributes:
        organs: Whether those of background and every organ are.
        uncertainty: Whether the uncertainty is.
        bits: Of a probability; an uncertainty has 8.
        extent: What the files of probabilities cover.
        labels: The organs.
        temperatures: As in the record.
    """

    organs: bool
    uncertainty: bool
    bits: Bits
    extent: Extent
    labels: LabelSet
    temperatures: tuple[float | None, ...] = (None,)

    def files(self, results: Path, case_id: str) -> tuple[Path, ...]:
        """The files of a case: background, the organs in their order, uncertainty; those that are wanted."""
        folder = case_file(results / PROBABILITIES, case_id)
        names = organ_files(self.labels) if self.organs else ()
        uncertain = (case_file(results / UNCERTAINTY, case_id, ".nii.gz"),) if self.uncertainty else ()
        return (*(folder / name for name in names), *uncertain)

    def is_saved(self, results: Path, saved: SavedProbabilities | None) -> bool:
        """Whether all that is wanted of a case was saved, and is there as it was written."""
        if saved is None or saved.temperatures != self.temperatures:
            return False
        wanted = {}
        if self.organs:
            if (saved.bits, saved.extent) != (self.bits, self.extent) or not saved.part(PROBABILITIES):
                return False
            wanted = saved.part(PROBABILITIES)
        if self.uncertainty:
            if not saved.part(UNCERTAINTY):
                return False
            wanted = wanted | saved.part(UNCERTAINTY)
        return all((results / name).is_file() and content_hash(results / name) == wanted[name] for name in wanted)

    def save(self, results: Path, case_id: str, parts: Sequence[KnownLogits], grid: SourceGrid) -> SavedProbabilities:
        """Writes the files of a case, each atomically: slab by slab, across the slowest axis of the image's file.

        Args:
            results: The folder of the label maps.
            case_id: The case.
            parts: What the networks of each plan say, on one device.
            grid: Of the image as they saw it.

        Raises:
            OSError: the disk is full, or too many files are open.
        """
        paths = self.files(results, case_id)
        axis = grid.axes.index(0)
        with contextlib.ExitStack() as stack:
            files = _Files(self, paths, grid, box_of(parts), stack)
            files.blank(before=True)
            for slab, probabilities in mean_probabilities(parts, axis=axis, backwards=grid.flips[axis]):
                files.add(slab, probabilities, independent=parts[0].independent)
            files.blank(before=False)
        hashes = {path.relative_to(results).as_posix(): content_hash(path) for path in paths}
        return SavedProbabilities(bits=self.bits, extent=self.extent, temperatures=self.temperatures, files=hashes)


def organ_files(labels: LabelSet) -> tuple[str, ...]:
    """Names of the files of background and every organ; the number gives each its own, whatever the organ is called."""
    digits = len(str(labels.count))
    names = ("background", *labels.names)
    return tuple(
        f"{at:0{digits}d}_{re.sub(r'[^A-Za-z0-9.+-]+', '_', name)[:80]}.nii.gz" for at, name in enumerate(names)
    )


def remove_outdated(results: Path, earlier: SavedProbabilities | None, now: Mapping[str, str]) -> None:
    """Removes what was saved of an earlier prediction of a case and is not of the present one.

    What has taken the place of such a file since belongs to another label map, or to somebody, and stays.
    """
    for name, content in ({} if earlier is None else earlier.files).items():
        path = results / name
        if name not in now and holds_shares(path) and content_hash(path) == content:
            path.unlink(missing_ok=True)


class _Files:
    """The open files of one case, which grow plane by plane."""

    def __init__(
        self,
        output: ProbabilityOutput,
        paths: Sequence[Path],
        grid: SourceGrid,
        whole: BoundingBox,
        stack: contextlib.ExitStack,
    ) -> None:
        self._output, self._grid = output, grid
        image = BoundingBox.whole(grid.canonical.shape_zyx)
        self._box = whole if output.extent == "region" else image
        self._whole, self._image = whole, image
        self._axis = grid.axes.index(0)
        part = _part(grid, self._box) if output.extent == "region" else grid
        organs = paths[: len(paths) - output.uncertainty]
        self._organs = [
            stack.enter_context(share_file(path, part.geometry, part.forms, output.bits)) for path in organs
        ]
        last = [share_file(path, grid.geometry, grid.forms, 8) for path in paths[len(organs) :]]
        self._uncertainty = [stack.enter_context(each) for each in last]

    def add(self, slab: BoundingBox, probabilities: torch.Tensor, *, independent: bool) -> None:
        """Takes the probabilities in the next slab."""
        if self._organs:
            organs = _of_organs(probabilities, self._output.labels, independent=independent)
            for at, (add, share) in enumerate(zip(self._organs, organs, strict=True)):
                add(self._planes(share, slab, self._box, self._output.bits, fill=at == 0))
        for add in self._uncertainty:
            add(self._planes(_uncertainty(probabilities, independent=independent), slab, self._image, 8))

    def blank(self, *, before: bool) -> None:
        """Takes the planes before or behind the box in which the networks looked: they are background."""
        for at, add in enumerate(self._organs):
            self._blank(add, self._box, self._output.bits, before=before, fill=at == 0)
        for add in self._uncertainty:
            self._blank(add, self._image, 8, before=before)

    def _blank(
        self, add: Callable[[np.ndarray], None], box: BoundingBox, bits: Bits, *, before: bool, fill: bool = False
    ) -> None:
        outer, inner = box.slices[self._axis], self._whole.slices[self._axis]
        at_start = before != self._grid.flips[self._axis]
        count = inner.start - outer.start if at_start else outer.stop - inner.stop
        shape = list(box.shape_zyx)
        for first in range(0, count, _BLANK_PLANES):
            shape[self._axis] = min(_BLANK_PLANES, count - first)
            add(self._grid.to_file(_filled(shape, bits, fill=fill)))

    def _planes(
        self, share_zyx: torch.Tensor, slab: BoundingBox, box: BoundingBox, bits: Bits, *, fill: bool = False
    ) -> np.ndarray:
        """The planes of a file that lie in a slab, in the file's order."""
        largest = np.iinfo(stored_type(bits)).max
        shape, first = list(box.shape_zyx), list(box.start)
        shape[self._axis], first[self._axis] = slab.shape_zyx[self._axis], slab.start[self._axis]
        planes = _filled(shape, bits, fill=fill)
        if not fill and float(share_zyx.max()) * largest < 0.5:  # most organs are elsewhere
            return self._grid.to_file(planes)
        stored = (share_zyx * float(largest)).round_().to(torch.uint8 if bits == 8 else torch.int32).cpu().numpy()
        planes[slab.shifted((-first[0], -first[1], -first[2])).slices] = stored
        return self._grid.to_file(planes)


def _filled(shape: Sequence[int], bits: Bits, *, fill: bool) -> np.ndarray:
    kind = stored_type(bits)
    return np.full(shape, np.iinfo(kind).max if fill else 0, kind)


def _of_organs(probabilities: torch.Tensor, labels: LabelSet, *, independent: bool) -> Iterator[torch.Tensor]:
    """Those of background and every organ, (*slab) each, from those of all that the network tells apart."""
    if independent:
        yield 1 - probabilities.amax(dim=0)
        yield from probabilities
        return
    yield probabilities[0]
    for members in labels.members:
        first, *others = members
        share = probabilities[first]
        if others:  # rounding may make a sum larger than 1
            share = probabilities[list(members)].sum(dim=0).clamp_(max=1.0)
        yield share


def _uncertainty(probabilities: torch.Tensor, *, independent: bool) -> torch.Tensor:
    """How probable it is that a voxel's label is wrong, by the networks' own account."""
    if independent:
        return torch.minimum(probabilities, 1 - probabilities).amax(dim=0)
    return 1 - probabilities.amax(dim=0)


def _part(grid: SourceGrid, box: BoundingBox) -> SourceGrid:
    """The grid of a file that holds a part of an image."""
    canonical, file = grid.canonical, grid.geometry
    shape, first = [0, 0, 0], [0, 0, 0]
    for side, size, axis, flip in zip(box.slices, canonical.shape_zyx, grid.axes, grid.flips, strict=True):
        shape[axis] = side.stop - side.start
        first[axis] = size - side.stop if flip else side.start
    origin = file.world_xyz_mm((first[0], first[1], first[2]))
    part = dataclasses.replace(file, shape_zyx=(shape[0], shape[1], shape[2]), origin_xyz_mm=origin)
    return dataclasses.replace(grid, geometry=part, forms=None, second=None)
