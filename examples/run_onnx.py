"""Runs what `flaresemi_export --onnx` wrote, with numpy and onnxruntime alone: the steps of description.json as code.

    python run_onnx.py EXPORTED SCAN.nii.gz ORGANS.nii.gz        (SimpleITK reads and writes the files)

Simple rather than fast: whole volumes, one window after the other. The labels are those of flaresemi_predict, but for
voxels that rounding decides. Not here, and refused: models of nnU-Net, organs that are regions, the body rules
`ct_parts` and `foreground`, intensities other than `ct` and `none`. description.json says in words what those do.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime

Box = tuple[slice, ...]


def segment(folder: Path, image_czyx: np.ndarray, spacing_zyx_mm: tuple[float, float, float]) -> np.ndarray:
    """The label map, (Z, Y, X), of an image whose axes point to superior, posterior and left."""
    described = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    if described["body"] not in ("ct", "whole") or any(len(each) > 1 for each in described["label_organs"]):
        raise SystemExit("this example knows neither this body rule nor organs that are regions")
    body = find_body(image_czyx, spacing_zyx_mm) if described["body"] == "ct" else None
    body = body or tuple(slice(0, size) for size in image_czyx.shape[1:])
    stages = [Stage(folder, stage, image_czyx, body, spacing_zyx_mm) for stage in described["stages"].values()]
    stage, region = stages[-1], tuple(slice(0, size) for size in stages[-1].shape)
    organs = None
    if len(stages) == 2:
        seen = stages[0].logits(tuple(slice(0, size) for size in stages[0].shape)).argmax(0)
        organs = box_of(without_specks(seen))
    if organs is not None:
        organs = rescaled(rescaled(organs, stages[0].shape, lengths(body)), lengths(body), stage.shape)
        region = at_least(grown(organs, stage.margin_mm, stage), stage.patch, stage.shape)
    for repair in range(3):
        logits = stage.logits(region)
        faces = touched(logits.argmax(0), region, stage.shape) if stage.described["region"] == "organs" else []
        if not faces or repair == 2:
            break
        wider, sides = grown(region, max(stage.margin_mm, 10.0), stage), list(region)
        for axis, high in faces:
            old, new = sides[axis], wider[axis]
            sides[axis] = slice(old.start, new.stop) if high else slice(new.start, old.stop)
        region = tuple(sides)
    inside = rescaled(region, stage.shape, lengths(body))
    axes = [weights(stage.shape[a], lengths(body)[a], "linear", inside[a], region[a]) for a in range(3)]
    labels = np.stack([applied(each, axes) for each in logits]).argmax(0)
    clean(labels, described)
    whole = np.zeros(image_czyx.shape[1:], np.int64)
    whole[tuple(slice(b.start + i.start, b.start + i.stop) for b, i in zip(body, inside))] = labels
    return np.array(described["label_values"])[whole]


class Stage:
    """The networks of a stage and the image on its voxels."""

    def __init__(self, folder: Path, described: dict, image_czyx: np.ndarray, body: Box, spacing: tuple) -> None:
        self.described, self.margin_mm = described, described["margin_mm"]
        self.patch = tuple(described["window_zyx"])
        size, target = lengths(body), described["spacing_zyx_mm"]
        self.shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(size, spacing, target))
        self.spacing = tuple(n * s / m for n, s, m in zip(size, spacing, self.shape))
        whole = [slice(0, n) for n in self.shape]
        axes = [
            weights(n, m, described["resampling"], side, slice(0, n)) for n, m, side in zip(size, self.shape, whole)
        ]
        crop = image_czyx[(slice(None), *body)]
        scaled = (intensities(each, plan) for each, plan in zip(crop, described["intensities"]))
        self.image = np.stack([applied(each, axes) for each in scaled])
        files = [folder / network["onnx"] for network in described["networks"]]
        self.networks = [onnxruntime.InferenceSession(str(file)) for file in files]

    def logits(self, region: Box) -> np.ndarray:
        """Weighted mean over all windows and networks."""
        image, steps = self.image[(slice(None), *region)], self.described["window_divisor_zyx"]
        size = [window(n, p, d) for n, p, d in zip(lengths(region), self.patch, steps)]
        missing = [max(w - n, 0) for w, n in zip(size, lengths(region))]
        padded = np.stack(
            [
                np.pad(channel, [(m // 2, m - m // 2) for m in missing], constant_values=fill.min())
                for channel, fill in zip(image, self.image)
            ]
        )
        gauss = [np.exp(-0.5 * ((np.arange(w) - (w - 1) / 2) / (w / 8)) ** 2).astype(np.float32) for w in size]
        weight = gauss[0][:, None, None] * gauss[1][:, None] * gauss[2]
        total, summed = 0.0, np.zeros(padded.shape[1:], np.float32)
        for corner in itertools.product(*(starts(n, w) for n, w in zip(padded.shape[1:], size))):
            place = tuple(slice(c, c + w) for c, w in zip(corner, size))
            given = {"image": np.ascontiguousarray(padded[(slice(None), *place)][None])}
            found = np.mean([network.run(None, given)[0][0] for network in self.networks], axis=0)
            total = total if isinstance(total, np.ndarray) else np.zeros((len(found), *padded.shape[1:]), np.float32)
            total[(slice(None), *place)] += found * weight
            summed[place] += weight
        cut = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, lengths(region)))
        return (total / summed)[(slice(None), *cut)]


def intensities(channel: np.ndarray, plan: dict) -> np.ndarray:
    if plan["scheme"] == "none":
        return channel.clip(-65504, 65504).astype(np.float32)
    if plan["scheme"] != "ct":
        raise SystemExit(f"this example does not know the intensities '{plan['scheme']}'")
    return ((channel.clip(plan["clip_low"], plan["clip_high"]) - plan["mean"]) / plan["sd"]).astype(np.float32)


def weights(size: int, to: int, kind: str, wanted: slice, known: slice) -> np.ndarray:
    """How the wanted voxels of an axis are made from the known ones, as a matrix."""
    step, center = size / to, (np.arange(wanted.start, wanted.stop) + 0.5) * size / to - 0.5
    width = max(step, 1.0)
    radius = width * (2 if kind == "cubic" else 1)
    index = (np.floor(center - radius).astype(int) + 1)[:, None] + np.arange(math.ceil(2 * radius))
    d = np.abs(index - center[:, None]) / width
    far = np.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0)
    weight = np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, far) if kind == "cubic" else np.maximum(1 - d, 0)
    index = index.clip(0, size - 1).clip(known.start, known.stop - 1) - known.start
    matrix = np.zeros((len(index), known.stop - known.start), np.float32)
    np.add.at(matrix, (np.arange(len(index))[:, None], index), weight / weight.sum(1, keepdims=True))
    return matrix


def applied(volume: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
    for axis, matrix in enumerate(axes):
        volume = np.moveaxis(np.tensordot(matrix, volume, (1, axis)), 0, axis)
    return volume


def starts(size: int, window: int) -> list[int]:
    steps = math.ceil((size - window) / max(window / 2, 1))
    return [round(i * (size - window) / max(steps, 1)) for i in range(steps + 1)]


def window(size: int, patch: int, divisor: int) -> int:
    """The length of one patch to 1.375 of them that computes the fewest voxels."""
    return min(range(patch, int(1.375 * patch) + 1, divisor), key=lambda w: len(starts(max(size, w), w)) * w)


def lengths(box: Box) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in box)


def box_of(mask: np.ndarray) -> Box | None:
    hits = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(slice(int(each[0]), int(each[-1]) + 1) for each in hits) if hits[0].size else None


def rescaled(box: Box, sizes: tuple[int, ...], to: tuple[int, ...]) -> Box:
    lows = [min(max(math.floor(b.start * m / n + 1e-6), 0), m - 1) for b, n, m in zip(box, sizes, to)]
    highs = [max(min(math.ceil(b.stop * m / n - 1e-6), m), low + 1) for b, n, m, low in zip(box, sizes, to, lows)]
    return tuple(map(slice, lows, highs))


def grown(box: Box, margin_mm: float, stage: Stage) -> Box:
    more = [math.ceil(margin_mm / spacing - 1e-6) for spacing in stage.spacing]
    return tuple(slice(max(b.start - m, 0), min(b.stop + m, n)) for b, m, n in zip(box, more, stage.shape))


def at_least(box: Box, least: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    wanted = [min(max(n, low), size) for n, low, size in zip(lengths(box), least, shape)]
    first = [min(max(b.start - (w - n) // 2, 0), s - w) for b, w, n, s in zip(box, wanted, lengths(box), shape)]
    return tuple(slice(f, f + w) for f, w in zip(first, wanted))


def components(mask: np.ndarray, reach: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Number of each voxel's component, background 0, and their sizes; `reach` 3: 26 neighbors, 1: 6 of them."""
    count, labels = np.count_nonzero(mask), np.zeros(mask.shape, int)
    places = np.full(np.add(mask.shape, 2), -1)
    places[1:-1, 1:-1, 1:-1][mask] = root = np.arange(count)
    pairs = []
    for offset in itertools.product((0, 1, 2), repeat=3):
        if offset > (1, 1, 1) and sum(each != 1 for each in offset) <= reach:
            other = places[tuple(slice(o, o + n) for o, n in zip(offset, mask.shape))][mask]
            pairs.append(np.stack((np.flatnonzero(other >= 0), other[other >= 0])))
    neighbors = np.concatenate(pairs, axis=1)
    while (apart := (ends := root[neighbors])[0] != ends[1]).any():
        np.minimum.at(root, ends[:, apart].max(axis=0), ends[:, apart].min(axis=0))
        while not np.array_equal(root, root[root]):
            root = root[root]
    labels[mask] = np.unique(root, return_inverse=True)[1] + 1
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels, sizes


def without_specks(labels: np.ndarray) -> np.ndarray:
    kept = np.zeros(labels.shape, bool)
    for organ in set(np.unique(labels)) - {0}:
        numbers, sizes = components(labels == organ)
        kept |= (sizes >= max(8, 0.05 * sizes.max()))[numbers] & (numbers > 0)
    return kept


def touched(labels: np.ndarray, region: Box, shape: tuple[int, ...]) -> list[tuple[int, bool]]:
    """The faces (axis, high end) that organs reach although the image goes on."""
    sides = [(a, high) for a in range(3) for high in (False, True)]
    sides = [(a, high) for a, high in sides if (region[a].stop != shape[a] if high else region[a].start != 0)]
    kept = np.where(without_specks(labels), labels, 0)
    counts = {side: np.bincount(kept.take(-int(side[1]), side[0]).ravel()) for side in sides}
    return [side for side, count in counts.items() if (count[1:] >= 4).any()]


def clean(labels: np.ndarray, described: dict) -> None:
    names = [organs[0] if organs else "" for organs in described["label_organs"]]
    for group in described["touching"]:
        indices = [names.index(name) for name in group]
        numbers, sizes = components(np.isin(labels, indices))
        counts = np.stack([np.bincount(numbers[labels == i], minlength=len(sizes)) for i in indices], axis=1)
        there = counts >= np.maximum(0.1 * counts.max(axis=0), 1)
        main = max(range(len(sizes)), key=lambda piece: (there[piece].sum(), counts[piece].sum()))
        for place, index in enumerate(indices):
            if there[main, place]:
                labels[(labels == index) & (numbers != main)] = 0
    for index in (names.index(name) for name in described["keep_largest"]):
        numbers, sizes = components(labels == index)
        labels[(labels == index) & (numbers != sizes.argmax())] = 0


def find_body(image_czyx: np.ndarray, spacing: tuple) -> Box | None:
    shape = image_czyx.shape[1:]
    blocks = [max(1, min(round(4 / s), n // 16)) for s, n in zip(spacing, shape)]
    found = None
    for means in image_czyx:
        for axis, block in enumerate(blocks):
            at = np.arange(0, means.shape[axis], block)
            counts = (np.minimum(at + block, means.shape[axis]) - at).reshape(
                [-1 if a == axis else 1 for a in range(3)]
            )
            means = np.add.reduceat(means, at, axis=axis, dtype=np.float32) / counts.astype(np.float32)
        dense = means > -500
        if dense.all():
            continue
        radius = [max(min(10 / (s * b), 2 * n), 1) for s, b, n in zip(spacing[1:], blocks[1:], dense.shape[1:])]
        opened = dilated(~dilated(~dense, radius), radius)
        numbers, sizes = components(opened if opened.any() else dense, reach=1)
        pieces = (sizes >= 0.25 * sizes.max())[numbers] & (numbers > 0)
        here = box_of((dense & dilated(pieces, radius)) | pieces)
        found = (
            here
            if found is None
            else tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(found, here))
        )
    return (
        None
        if found is None
        else tuple(
            slice(max((side.start - 1) * b, 0), min((side.stop + 1) * b, n)) for side, b, n in zip(found, blocks, shape)
        )
    )


def dilated(mask: np.ndarray, radius: list[float]) -> np.ndarray:
    """Every slice by a disk."""
    (ry, rx), result = radius, np.zeros_like(mask)
    y, x = int(ry), int(rx)
    padded = np.pad(mask, ((0, 0), (y, y), (x, x)))
    for dy, dx in itertools.product(range(-y, y + 1), range(-x, x + 1)):
        if (dy / ry) ** 2 + (dx / rx) ** 2 <= 1 + 1e-9:
            result |= padded[:, y + dy : y + dy + mask.shape[1], x + dx : x + dx + mask.shape[2]]
    return result


def main() -> None:
    import SimpleITK as sitk

    exported, scan, output = map(Path, sys.argv[1:])
    image = sitk.ReadImage(str(scan), sitk.sitkFloat32)
    turned = sitk.DICOMOrient(image, "LPS")
    array = sitk.GetArrayFromImage(turned)
    result = sitk.GetImageFromArray(segment(exported, array[None], turned.GetSpacing()[::-1]).astype(np.int32))
    result.CopyInformation(turned)
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    sitk.WriteImage(sitk.DICOMOrient(result, code), str(output))


if __name__ == "__main__":
    main()
