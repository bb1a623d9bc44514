"""Where the patient is: everything else is cut off before any work is done.

By scipy: the disks of `acvl_utils` have whole radii alone, its filter of components takes ten times as long where there
are many, and half a second to import, and its morphology on a GPU needs a package that it does not ask for.
"""

import math

import numpy as np
import torch
from scipy import ndimage

from flaresemi.geometry import BoundingBox, FloatTriple, IntTriple
from flaresemi.plans import BodyRule

#: What is denser belongs to the patient, or to the table. Source: FlareSemiSeg's body crop; between lung and fat.
BODY_HU = -500.0

#: The body is found on a copy of about this spacing. Chosen: coarse enough for a second per image, fine enough for
#: a table top (15 mm and more).
_COARSE_MM = 4.0

#: Things thinner than this, in the axial plane, are table, tubes and clothes. Chosen.
_THIN_MM = 20.0

#: Further pieces of at least this part of the largest are kept: the second leg, an arm beside the trunk. Chosen.
_PIECE_SHARE = 0.25

#: What `ct` leaves out comes back in `ct_parts` when it holds more than this part of the body outside of its box, so
#: that the bodies which `ct` was made for keep their boxes. Chosen: tips of noses are a thousandth, toes of a foot two
#: to three hundredths, fingers more than the palm.
_MISSED_SHARE = 0.01

#: Part of the body from which on a piece that does not touch it is the patient's, too. Chosen: arm beside a trunk.
_APART_SHARE = 0.02

#: Table tops and blankets are wider than this in two directions, fingers, feet and ears are not. Chosen.
_SHEET_MM = 120.0

#: A piece apart may be longer than this only if it is thicker than the second number everywhere: an arm is, the rail
#: of a table is not. Chosen.
_ROD_MM = (250.0, 45.0)

#: Thinner than two blocks: skins, edges of the table. Chosen.
_SKIN_MM = 6.0

#: A quarter of a piece of the patient is denser than this, where shells of tables blur into air. Chosen: below fat.
_TISSUE_HU = -150.0

#: The same where only the histogram speaks: all but specks of noise. Chosen: in doubt too much.
_SPECK_SHARE = 0.01

#: Part of the range between the 2nd and the 98th percentile above which tissue begins.
#: Source: S. M. Smith, Fast robust automated brain extraction, Human Brain Mapping 17 (2002): its threshold t.
_TISSUE_SHARE = 0.1

#: A crop that saves less than this part of the volume is not worth the risk. Chosen.
_WORTHWHILE = 0.1


def find_body(
    image_czyx: np.ndarray, spacing_zyx_mm: FloatTriple, body: BodyRule, tensor_czyx: torch.Tensor | None = None
) -> tuple[BoundingBox, np.ndarray]:
    """Finds the box of the patient and, inside it, which voxels are the patient.

    The work is done on block means of about 4 mm; the box has a margin of one such block on every face. Where nothing
    is found, or no air is in the image, the result is the whole image.

    Args:
        image_czyx: Canonical image, float32, (C, Z, Y, X).
        spacing_zyx_mm: Its spacing.
        body: `ct`: by a threshold in HU; channels without a voxel of air are not in HU and have no say. What is
            thinner than 20 mm in the axial plane is left out, and pieces of less than a quarter of the largest.
            `ct_parts`: the same, but thin and separate parts that look like the patient come back, where they are
            more than trifles: hands, feet, limbs, small animals.
            `foreground`: by each channel's own histogram, where in doubt too much.
            `whole`: the whole image; the mask is that of `foreground`.
            `nonzero`: what is not 0 in all channels, voxel by voxel, without filling of holes, as nnU-Net crops.
        tensor_czyx: The same image on a device that takes the block means faster: the same up to rounding.

    Returns:
        The box, and a bool mask of the box's shape, holes (lungs, bowel gas) filled, accurate to a block.
    """
    shape = (image_czyx.shape[1], image_czyx.shape[2], image_czyx.shape[3])
    if body == "nonzero":
        there = (image_czyx != 0).any(axis=0)
        inside = BoundingBox.of_mask(there)
        return (BoundingBox.whole(shape), np.ones(shape, bool)) if inside is None else (inside, there[inside.slices])
    blocks = _block_shape(spacing_zyx_mm, shape)
    spacing = tuple(size * block for size, block in zip(spacing_zyx_mm, blocks, strict=True))
    coarse: np.ndarray | None = None
    for index, channel in enumerate(image_czyx):
        means = _block_means(channel, blocks) if tensor_czyx is None else _device_means(tensor_czyx[index], blocks)
        found = _ct_body(means, spacing, parts=body == "ct_parts") if body.startswith("ct") else _foreground(means)
        if found is not None:
            coarse = found if coarse is None else coarse | found
    box = None if coarse is None else BoundingBox.of_mask(coarse)
    if coarse is None or box is None:
        return BoundingBox.whole(shape), np.ones(shape, bool)
    box = BoundingBox.of_slices(
        slice(max((side.start - 1) * block, 0), min((side.stop + 1) * block, size))
        for side, block, size in zip(box.slices, blocks, shape, strict=True)
    )
    saves_little = math.prod(box.shape_zyx) > (1 - _WORTHWHILE) * math.prod(shape)
    if body == "whole" or (body == "foreground" and saves_little):
        box = BoundingBox.whole(shape)
    return box, _enlarged(coarse, blocks, box)


def _block_shape(spacing_zyx_mm: FloatTriple, shape_zyx: IntTriple) -> IntTriple:
    """Voxels per block and axis: about 4 mm, but no fewer than 16 blocks along an axis that has the voxels."""
    z, y, x = (
        max(1, min(round(_COARSE_MM / spacing), size // 16))
        for spacing, size in zip(spacing_zyx_mm, shape_zyx, strict=True)
    )
    return z, y, x


def _block_means(channel_zyx: np.ndarray, blocks: IntTriple) -> np.ndarray:
    means = channel_zyx
    for axis, block in enumerate(blocks):
        if block == 1:
            continue
        size = means.shape[axis]
        starts = np.arange(0, size, block)
        counts = np.minimum(starts + block, size) - starts
        means = np.add.reduceat(means, starts, axis=axis, dtype=np.float32)
        means /= np.expand_dims(counts, tuple(other for other in range(3) if other != axis)).astype(np.float32)
    return means


def _device_means(channel_zyx: torch.Tensor, blocks: IntTriple) -> np.ndarray:
    """As `_block_means`, up to rounding."""
    means = channel_zyx
    for axis, block in enumerate(blocks):
        if block == 1:
            continue
        size = means.shape[axis]
        before = (slice(None),) * axis
        sums = means[(*before, slice(0, None, block))].clone()
        for offset in range(1, block):
            others = means[(*before, slice(offset, None, block))]
            sums.narrow(axis, 0, others.shape[axis]).add_(others)
        counts = torch.full([sums.shape[axis] if other == axis else 1 for other in range(3)], float(block))
        counts.view(-1)[-1] = size - (sums.shape[axis] - 1) * block  # the last block may hold fewer
        means = sums.div_(counts.to(sums.device))
    return means.cpu().numpy()


def _ct_body(means: np.ndarray, spacing_zyx_mm: tuple[float, ...], *, parts: bool) -> np.ndarray | None:
    dense = means > BODY_HU
    if dense.all():
        return None
    # In the axial plane only, where a table is thin; scans of a few slices have no third dimension to speak of.
    # A disk of twice the plane covers all of it, wherever it stands.
    radius = [min(_THIN_MM / 2 / size, 2 * n) for size, n in zip(spacing_zyx_mm[1:], dense.shape[1:], strict=True)]
    opened = _opened(dense, radius)
    pieces = _large_pieces(opened if opened.any() else dense, _PIECE_SHARE)
    # Opening rounds off noses and fingers: what touches the kept pieces nearby comes back.
    near = _dilated(pieces, radius)
    body = _filled(dense & near | pieces)
    return _filled(body | _missed_parts(means, dense & ~body, body, spacing_zyx_mm)) if parts else body


def _missed_parts(
    means: np.ndarray, rest: np.ndarray, body: np.ndarray, spacing_zyx_mm: tuple[float, ...]
) -> np.ndarray:
    """Parts of the patient among the dense voxels that were left out; none where they are trifles.

    Args:
        means: HU of the blocks.
        rest: Dense blocks that were left out: fingers, arms, table, clothes.
        body: What was found.
        spacing_zyx_mm: Of the blocks.
    """
    touching = ndimage.binary_dilation(body, iterations=2)  # over what an opening takes away
    least = _APART_SHARE * np.count_nonzero(body)
    found = np.zeros_like(rest)
    sheets = np.zeros_like(rest)
    for box, piece in _pieces(rest):
        if _is_sheet(piece, spacing_zyx_mm):
            sheets[box] |= piece
        elif _is_patient(piece, means[box], touching[box], spacing_zyx_mm, least):
            found[box] |= piece
    # A hand may lie on the table: the part of both that is thicker than a table's shell.
    for box, piece in _pieces(_opened(sheets, [1.0, 1.0])):
        if _is_patient(piece, means[box], touching[box], spacing_zyx_mm, least):
            found[box] |= piece
    outside = found.copy()
    kept = BoundingBox.of_mask(body)
    if kept is not None:
        outside[kept.grown(1.0, (1.0, 1.0, 1.0), body.shape).slices] = False
    return found if np.count_nonzero(outside) > _MISSED_SHARE * np.count_nonzero(body) else np.zeros_like(rest)


def _pieces(mask: np.ndarray) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """Each component's box and the component in it."""
    labels, _ = ndimage.label(mask)
    return [(box, labels[box] == number) for number, box in enumerate(ndimage.find_objects(labels), start=1)]


def _extents_mm(piece: np.ndarray, spacing_zyx_mm: tuple[float, ...]) -> np.ndarray:
    """Edges of the cuboid with the piece's moments of inertia, the longest first."""
    points = np.argwhere(piece) * spacing_zyx_mm
    spread = np.linalg.eigvalsh(np.cov(points.T, bias=True))
    return np.sqrt(12 * np.maximum(spread, 0))[::-1]


def _is_sheet(piece: np.ndarray, spacing_zyx_mm: tuple[float, ...]) -> bool:
    return bool(_extents_mm(piece, spacing_zyx_mm)[1] >= _SHEET_MM)


def _is_patient(
    piece: np.ndarray, means: np.ndarray, touching: np.ndarray, spacing_zyx_mm: tuple[float, ...], least: float
) -> bool:
    """Whether a piece is dense and thick enough, no sheet, and touches the body or is as large as a part of one."""
    longest, middle, shortest = _extents_mm(piece, spacing_zyx_mm)
    if middle >= _SHEET_MM or shortest < _SKIN_MM or np.percentile(means[piece], 75) < _TISSUE_HU:
        return False
    longest_rod, thick = _ROD_MM
    apart = np.count_nonzero(piece) >= least and (longest < longest_rod or shortest >= thick)
    return bool(apart or (touching & piece).any())


def _foreground(means: np.ndarray) -> np.ndarray | None:
    low, high = (float(value) for value in np.percentile(means, (2, 98)))
    tissue = means > low + _TISSUE_SHARE * (high - low)
    if not high > low or not tissue.any():
        return None
    return _filled(_large_pieces(tissue, _SPECK_SHARE))


def _disk(radius_yx: list[float]) -> np.ndarray:
    ry, rx = (max(radius, 1.0) for radius in radius_yx)
    y, x = np.mgrid[-int(ry) : int(ry) + 1, -int(rx) : int(rx) + 1]
    return ((y / ry) ** 2 + (x / rx) ** 2 <= 1.0 + 1e-9)[None]


def _opened(mask: np.ndarray, radius_yx: list[float]) -> np.ndarray:
    # The patient goes on beyond the border of a small field of view, so the border does not erode.
    disk = _disk(radius_yx)
    return ndimage.binary_dilation(ndimage.binary_erosion(mask, disk, border_value=1), disk)


def _dilated(mask: np.ndarray, radius_yx: list[float]) -> np.ndarray:
    return ndimage.binary_dilation(mask, _disk(radius_yx))


def _large_pieces(mask: np.ndarray, share: float) -> np.ndarray:
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= share * sizes.max())[labels]


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fills what is enclosed in each axial slice: in 3D, lungs are open to the mouth or the field's end."""
    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


def _enlarged(coarse: np.ndarray, blocks: IntTriple, box: BoundingBox) -> np.ndarray:
    """A coarse mask at full resolution, inside a box only."""
    z, y, x = (np.arange(start, stop) // block for start, stop, block in zip(box.start, box.stop, blocks, strict=True))
    return coarse[z][:, y][:, :, x]
