"""Runs what `flaresemi_export --onnx` wrote, with numpy and onnxruntime alone: the steps of description.json as code.

    python run_onnx.py EXPORTED SCAN.nii.gz [SCAN.nii.gz ...] ORGANS.nii.gz

One scan per channel, in the order of `channels` in description.json; SimpleITK, which is needed for files only, reads
and writes them. Simple rather than fast: whole volumes, one window after the other. The labels are those of
flaresemi_predict, but for voxels that rounding decides. Models of nnU-Net are refused: their crop, resampling and
mirroring (description.json says them in words) are not here.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime

Box = tuple[slice, ...]
Spacing = tuple[float, float, float]

#: A turned image must be segmented so much more surely than the image as it lies.
SURER_BY = 0.05


def segment(folder: Path, image_czyx: np.ndarray, spacing_zyx_mm: Spacing) -> np.ndarray:
    """The label map, (Z, Y, X), of an image whose axes point to superior, posterior and left."""
    described = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    refuse_unknown(described, len(image_czyx))
    look, quarters = Look(folder, described, image_czyx, spacing_zyx_mm), 0
    if described.get("quarter_turns"):
        as_it_lies = highest = look.surety()
        for turn in (1, 2, 3) if as_it_lies + SURER_BY < 1 else ():
            z, y, x = spacing_zyx_mm
            turned = np.ascontiguousarray(np.rot90(image_czyx, turn, (-2, -1)))
            other = Look(folder, described, turned, (z, x, y) if turn % 2 else (z, y, x))
            if (sure := other.surety()) > max(highest, as_it_lies + SURER_BY):
                look, quarters, highest = other, turn, sure
    return np.array(described["label_values"])[np.rot90(look.labels(), -quarters, (-2, -1))]


class Look:
    """What the networks say of an image as it lies."""

    def __init__(self, folder: Path, described: dict, image_czyx: np.ndarray, spacing_zyx_mm: Spacing) -> None:
        self.described, self.shape = described, image_czyx.shape[1:]
        self.body, mask = find_body(image_czyx, spacing_zyx_mm, described["body"])
        body = self.body
        stages = [Stage(folder, each, image_czyx, body, mask, spacing_zyx_mm) for each in described["stages"].values()]
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
        self.stage, self.region, self.logits = stage, region, logits

    def surety(self) -> float:
        """Dice of the label map at FINE's spacing with its own probabilities, over all organs."""
        labels = self.logits.argmax(0)
        clean(labels, self.described)
        odds = np.exp(self.logits - self.logits.max(axis=0))
        shares, organs = odds / odds.sum(axis=0), labels > 0
        agreed = np.take_along_axis(shares, labels[None], axis=0)[0][organs].sum()
        return float(2 * agreed / ((1 - shares[0]).sum() + organs.sum())) if organs.any() else 0.0

    def labels(self) -> np.ndarray:
        """The outputs' numbers on the image's voxels."""
        stage, region, body = self.stage, self.region, self.body
        inside = rescaled(region, stage.shape, lengths(body))
        axes = [weights(stage.shape[a], lengths(body)[a], "linear", inside[a], region[a]) for a in range(3)]
        labels = np.stack([applied(each, axes) for each in self.logits]).argmax(0)
        clean(labels, self.described)
        whole = np.zeros(self.shape, np.int64)
        whole[tuple(slice(b.start + i.start, b.start + i.stop) for b, i in zip(body, inside))] = labels
        return whole


def refuse_unknown(described: dict, channels: int) -> None:
    if described["body"] not in ("ct", "ct_parts", "foreground", "whole"):
        raise SystemExit(
            f"description.json has the body rule '{described['body']}': this example runs models that flaresemi has "
            "trained, and none of nnU-Net; flaresemi_predict -m runs those"
        )
    if not described.get("label_values"):
        raise SystemExit("this export is of an older flaresemi: export the models again")
    if channels != len(described["channels"]):
        raise SystemExit(
            f"{channels} scan(s) given: the channels are {', '.join(described['channels'])}, one scan each"
        )


class Stage:
    """The networks of a stage and the image on its voxels."""

    def __init__(
        self, folder: Path, described: dict, image_czyx: np.ndarray, body: Box, mask: np.ndarray, spacing: tuple
    ) -> None:
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
        scaled = (intensities(each, plan, mask) for each, plan in zip(crop, described["intensities"]))
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


def intensities(channel: np.ndarray, plan: dict, mask: np.ndarray) -> np.ndarray:
    """A channel of the body's box as the networks see it; `mask` is the body in it."""
    low, high, mean, sd = scaling(channel, plan, mask)
    scaled = (channel if low is None else channel.clip(low, high)) - np.float32(mean)
    return (scaled * np.float32(1 / sd)).astype(np.float32)


def scaling(channel: np.ndarray, plan: dict, mask: np.ndarray) -> tuple[float | None, float | None, float, float]:
    """Clip to the first two (None: not at all), subtract the third, divide by the fourth."""
    scheme = plan["scheme"]
    if scheme == "ct":
        return plan["clip_low"], plan["clip_high"], plan["mean"], plan["sd"]
    if scheme in ("none", "rgb_to_0_1"):
        return -65504.0, 65504.0, 0.0, 255.0 if scheme == "rgb_to_0_1" else 1.0
    if scheme not in ("zscore", "rescale_to_0_1"):
        raise SystemExit(f"this example does not know the intensities '{scheme}'")
    values = channel[mask] if scheme == "zscore" and mask.any() else channel.ravel()
    stray = stray_range(values)
    kept = values if stray is None else values[(values >= stray[0]) & (values <= stray[1])]
    if scheme == "rescale_to_0_1":
        low, high = float(kept.min()), float(kept.max())
        return low, high, low, high - low if high - low > 1e-6 * max(abs(low), abs(high)) else 1.0
    mean, sd = float(kept.mean(dtype=np.float64)), float(kept.std(dtype=np.float64))
    return *(stray or (None, None)), mean, sd if sd > 1e-6 * max(abs(mean), 1e-30) else 1.0


def stray_range(values: np.ndarray) -> tuple[float, float] | None:
    """Where all but a few values lie, if one of these few alone would decide the SD."""
    five, most = (float(each) for each in np.percentile(values[:: max(1, values.size // 200_000)], (5, 95)))
    contrast, furthest = most - five, max(float(values.max()) - most, five - float(values.min()))
    if not contrast > 0 or furthest <= contrast * math.sqrt(values.size):
        return None
    low, high = five - 10 * contrast, most + 10 * contrast
    outside = np.count_nonzero(values < low) + np.count_nonzero(values > high)
    return (low, high) if outside <= max(1, 1e-4 * values.size) else None


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
    """In place: `touching`, then `keep_largest`; of organs that are regions the larger ones first."""
    organs = [set(each) for each in described["label_organs"]]  # of every output

    def outputs(organ: str) -> list[int]:
        return [i for i, each in enumerate(organs) if organ in each]

    def take_out(organ: str, where: np.ndarray) -> None:
        before = labels.copy()
        for i in outputs(organ):  # what is left is the output with most of the other organs and no further one
            rest = organs[i] - {organ}
            best = max(range(len(organs)), key=lambda j: (organs[j] <= rest, len(organs[j]), -j))
            labels[(before == i) & where] = best

    for group in described["touching"]:
        members = [outputs(organ) for organ in group]
        numbers, sizes = components(np.isin(labels, list(set().union(*members))))
        counts = [np.bincount(numbers[np.isin(labels, own)], minlength=len(sizes)) for own in members]
        there = np.stack(counts, axis=1) >= np.maximum(0.1 * np.max(counts, axis=1), 1)
        main = max(range(len(sizes)), key=lambda piece: (there[piece].sum(), sizes[piece]))
        for place in sorted(range(len(group)), key=lambda place: -len(members[place])):
            if there[main, place]:
                take_out(group[place], numbers != main)
    for organ in sorted(described["keep_largest"], key=lambda organ: -len(outputs(organ))):
        numbers, sizes = components(np.isin(labels, outputs(organ)))
        take_out(organ, numbers != sizes.argmax())


def find_body(image_czyx: np.ndarray, spacing: tuple, rule: str) -> tuple[Box, np.ndarray]:
    """The box of the patient, and which voxels in it are the patient."""
    shape = image_czyx.shape[1:]
    blocks = [max(1, min(round(4 / s), n // 16)) for s, n in zip(spacing, shape)]
    size = [s * block for s, block in zip(spacing, blocks)]
    means = [block_means(channel, blocks) for channel in image_czyx]
    found = [ct_body(each, size, rule == "ct_parts") if rule.startswith("ct") else foreground(each) for each in means]
    found = [each for each in found if each is not None]
    everything = tuple(slice(0, n) for n in shape)
    coarse = np.logical_or.reduce(found) if found else np.zeros((1, 1, 1), bool)
    if not coarse.any():
        return everything, np.ones(shape, bool)
    box = tuple(
        slice(max((side.start - 1) * block, 0), min((side.stop + 1) * block, n))
        for side, block, n in zip(box_of(coarse), blocks, shape)
    )
    saves_little = math.prod(lengths(box)) > (1 - 0.1) * math.prod(shape)
    if rule == "whole" or (rule == "foreground" and saves_little):
        box = everything
    return box, coarse[np.ix_(*(np.arange(side.start, side.stop) // block for side, block in zip(box, blocks)))]


def block_means(means: np.ndarray, blocks: list[int]) -> np.ndarray:
    for axis, block in enumerate(blocks):
        at = np.arange(0, means.shape[axis], block)
        counts = np.minimum(at + block, means.shape[axis]) - at
        sums = np.add.reduceat(means, at, axis=axis, dtype=np.float32)
        means = sums / np.expand_dims(counts, [other for other in range(3) if other != axis]).astype(np.float32)
    return means


def foreground(means: np.ndarray) -> np.ndarray | None:
    low, high = (float(each) for each in np.percentile(means, (2, 98)))
    tissue = means > low + 0.1 * (high - low)
    return filled(large_pieces(tissue, 0.01)) if high > low and tissue.any() else None


def ct_body(means: np.ndarray, size: list[float], parts: bool) -> np.ndarray | None:
    """What is dense, without what is thin in the axial plane; with `parts`, fingers and the like come back."""
    dense = means > -500
    if dense.all():
        return None
    radius = [min(10 / s, 2 * n) for s, n in zip(size[1:], dense.shape[1:])]
    thick = opened(dense, radius)
    pieces = large_pieces(thick if thick.any() else dense, 0.25)
    body = filled((dense & dilated(pieces, radius)) | pieces)
    return filled(body | missed_parts(means, dense & ~body, body, size)) if parts else body


def missed_parts(means: np.ndarray, rest: np.ndarray, body: np.ndarray, size: list[float]) -> np.ndarray:
    """Parts of the patient among the dense blocks that were left out; none where they are trifles."""
    near, large = cross(cross(body)), 0.02 * np.count_nonzero(body)

    def is_patient(piece: np.ndarray) -> bool:
        longest, middle, shortest = extents(piece, size)
        if middle >= 120 or shortest < 6 or np.percentile(means[tuple(piece.T)], 75) < -150:
            return False
        return (len(piece) >= large and (longest < 250 or shortest >= 45)) or near[tuple(piece.T)].any()

    found, sheets = np.zeros_like(rest), np.zeros_like(rest)
    for piece in pieces_of(rest):
        if extents(piece, size)[1] >= 120:
            sheets[tuple(piece.T)] = True
        elif is_patient(piece):
            found[tuple(piece.T)] = True
    for piece in pieces_of(opened(sheets, [1, 1])):  # a hand on the table
        if is_patient(piece):
            found[tuple(piece.T)] = True
    outside = found.copy()
    if (box := box_of(body)) is not None:
        outside[tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)] = False
    return found if np.count_nonzero(outside) > 0.01 * np.count_nonzero(body) else np.zeros_like(rest)


def pieces_of(mask: np.ndarray) -> list[np.ndarray]:
    """The blocks of each component (6 neighbors), (blocks, 3)."""
    numbers, sizes = components(mask, reach=1)
    order = np.argsort(numbers[mask], kind="stable")
    return np.split(np.argwhere(mask)[order], np.cumsum(sizes[1:])[:-1]) if len(sizes) > 1 else []


def extents(piece: np.ndarray, size: list[float]) -> np.ndarray:
    """Edges of the cuboid with the piece's moments of inertia, the longest first."""
    return np.sqrt(12 * np.maximum(np.linalg.eigvalsh(np.cov((piece * size).T, bias=True)), 0))[::-1]


def large_pieces(mask: np.ndarray, share: float) -> np.ndarray:
    numbers, sizes = components(mask, reach=1)
    return (sizes >= share * sizes.max())[numbers] & mask


def filled(mask: np.ndarray) -> np.ndarray:
    """With the holes in every slice: what its border does not reach."""
    air = ~mask
    outside = np.zeros_like(mask)
    outside[:, [0, -1]] = outside[:, :, [0, -1]] = True
    outside &= air
    while not np.array_equal(wider := dilated(outside, [1, 1]) & air, outside):
        outside = wider
    return ~outside


def opened(mask: np.ndarray, radius: list[float]) -> np.ndarray:
    return dilated(~dilated(~mask, radius), radius)


def dilated(mask: np.ndarray, radius: list[float]) -> np.ndarray:
    """Every slice by a disk."""
    (ry, rx), result = (max(each, 1.0) for each in radius), np.zeros_like(mask)
    y, x = int(ry), int(rx)
    padded = np.pad(mask, ((0, 0), (y, y), (x, x)))
    for dy, dx in itertools.product(range(-y, y + 1), range(-x, x + 1)):
        if (dy / ry) ** 2 + (dx / rx) ** 2 <= 1 + 1e-9:
            result |= padded[:, y + dy : y + dy + mask.shape[1], x + dx : x + dx + mask.shape[2]]
    return result


def cross(mask: np.ndarray) -> np.ndarray:
    """With the 6 neighbors of every block."""
    result = dilated(mask, [1, 1])
    result[1:] |= mask[:-1]
    result[:-1] |= mask[1:]
    return result


def main() -> None:
    import SimpleITK as sitk

    exported, *scans, output = map(Path, sys.argv[1:])
    images = [sitk.ReadImage(str(scan), sitk.sitkFloat32) for scan in scans]
    turned = [sitk.DICOMOrient(image, "LPS") for image in images]
    image_czyx = np.stack([sitk.GetArrayFromImage(image) for image in turned])
    result = sitk.GetImageFromArray(segment(exported, image_czyx, turned[0].GetSpacing()[::-1]).astype(np.int32))
    result.CopyInformation(turned[0])
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(images[0].GetDirection())
    sitk.WriteImage(sitk.DICOMOrient(result, code), str(output))


if __name__ == "__main__":
    main()
