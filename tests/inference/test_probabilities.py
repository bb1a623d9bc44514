"""Probabilities as files: read back they give the label map, on the image's own grid, however it lies."""

import dataclasses
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from flaresemi.geometry import BoundingBox, Geometry, StageGrid
from flaresemi.inference.averaging import AveragedSegmenter
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.probabilities import ProbabilityOutput, SavedProbabilities, organ_files, remove_outdated
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import read_grid, write_channel
from flaresemi.io.shares import holds_shares
from flaresemi.labels import Label, LabelSet
from flaresemi.plans import Stage
from flaresemi.preprocessing.averaging import KnownLogits, mean_probabilities

#: Axes of the file permuted, and two of them backwards.
TURNED = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def output(labels, **changes):
    usual = {"organs": True, "uncertainty": True, "bits": 8, "extent": "image"}
    return ProbabilityOutput(labels=labels, **(usual | changes))


def image_of(fakes, direction):
    """A scan with a liver that fades, of a file that lies like this."""
    turn = {} if direction is None else {"direction": direction}
    source = SourceGrid.of(
        Geometry(shape_zyx=(20, 24, 28), spacing_zyx_mm=(3.0, 3.0, 3.0), origin_xyz_mm=(5.0, 6.0, 7.0), **turn)
    )
    body = fakes.body(source.canonical.shape_zyx)
    body[6:14, 8:18, 6:18] = np.linspace(20, 120, 12)
    return dataclasses.replace(fakes.image(body), source=source)


def models(fakes, **changes):
    soft = {"threshold": torch.tensor([0.0, 9.0, 9.0, 0.6]), "gain": torch.tensor([0.0, 1.0, 1.0, 6.0])}
    plan = fakes.plan(Stage.FINE, region="body")
    return Segmenter([fakes.checkpoint(plan, weights=soft, **changes)], device="cpu", precision="fp32", engine="torch")


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("direction", [None, TURNED])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_largest_share_is_the_label_map(fakes, tmp_path, direction, bits):
    image, segmenter, wanted = image_of(fakes, direction), models(fakes), output(fakes.labels, bits=bits)
    kept = []
    segmentation = segmenter.segment(
        image, save=lambda parts, grid: kept.append(wanted.save(tmp_path, "a", parts, grid))
    )
    names = organ_files(fakes.labels)
    assert names == ("0_background.nii.gz", "1_right_kidney.nii.gz", "2_left_kidney.nii.gz", "3_liver.nii.gz")
    shares = np.stack([read(tmp_path / "probabilities" / "a" / name) for name in names])
    step = 1 / (2**bits - 1)
    assert shares.shape[1:] == image.source.geometry.shape_zyx
    assert np.abs(shares.sum(axis=0) - 1).max() <= 2.01 * step
    first, second = np.sort(shares, axis=0)[:-3:-1]
    clear = first - second > 1.01 * step
    indices = image.source.to_file(segmentation.indices_zyx)
    assert clear.mean() > 0.95
    assert 0 < (indices == 3).sum() < indices.size
    assert np.array_equal(shares.argmax(axis=0)[clear], indices[clear])
    uncertain = read(tmp_path / "uncertainty" / "a.nii.gz")
    assert np.abs(uncertain - (1 - first)).max() <= step + 1 / 255
    assert uncertain.max() > 0.3
    # The same grid, the same numbers by another program; all that the record says is there.
    path = tmp_path / "probabilities" / "a" / names[3]
    assert read_grid(path).geometry.far_corner_distance_mm(image.source.geometry) < 1e-3
    assert np.allclose(np.asarray(nibabel.load(path).dataobj).T, shares[3], atol=1e-6)
    assert nibabel.load(path).header["bitpix"] == bits
    assert wanted.is_saved(tmp_path, kept[0])
    assert not output(fakes.labels, bits=24 - bits).is_saved(tmp_path, kept[0])
    path.unlink()
    assert not wanted.is_saved(tmp_path, kept[0])


@pytest.mark.parametrize("direction", [None, TURNED])
def test_files_of_the_region_are_the_same_part_of_those_of_the_image(fakes, tmp_path, direction):
    image, segmenter = image_of(fakes, direction), models(fakes)
    for extent in ("image", "region"):
        wanted = output(fakes.labels, extent=extent, uncertainty=False)
        segmenter.segment(image, save=lambda parts, grid, w=wanted, e=extent: w.save(tmp_path / e, "a", parts, grid))
    part, whole = (sitk.ReadImage(str(tmp_path / e / "probabilities/a/3_liver.nii.gz")) for e in ("region", "image"))
    assert part.GetNumberOfPixels() < whole.GetNumberOfPixels()
    start = whole.TransformPhysicalPointToIndex(part.GetOrigin())
    x, y, z = (slice(at, at + size) for at, size in zip(start, part.GetSize(), strict=True))
    array = sitk.GetArrayFromImage(whole)
    assert np.array_equal(array[z, y, x], sitk.GetArrayFromImage(part))
    array[z, y, x] = 0
    assert not array.any()


def test_an_average_saves_the_mean_and_background_where_a_plan_did_not_look(fakes, tmp_path):
    image = image_of(fakes, None)
    sharp = {"threshold": torch.tensor([0.0, 9.0, 9.0, 0.3]), "gain": torch.tensor([0.0, 1.0, 1.0, 90.0])}
    both = [models(fakes), Segmenter([fakes.checkpoint(fakes.plan(Stage.FINE, region="body"), weights=sharp)])]
    each = []
    for segmenter in (*both, AveragedSegmenter(both)):
        wanted = output(fakes.labels, bits=16, uncertainty=False)
        segmenter.segment(image, save=lambda parts, grid, w=wanted: w.save(tmp_path / str(len(each)), "a", parts, grid))
        each.append(read(tmp_path / str(len(each)) / "probabilities" / "a" / "3_liver.nii.gz"))
    assert np.abs(each[2] - (each[0] + each[1]) / 2).max() < 1e-4
    assert np.abs(each[0] - each[1]).max() > 0.3


def test_an_organ_of_several_values_has_the_sum_and_independent_outputs_speak_for_themselves(tmp_path):
    labels = LabelSet(
        labels=(Label(name="core/a", value=1, more_values=(2,)), Label(name="all", value=1, more_values=(2, 3)))
    )
    grid = StageGrid.at_spacing((4, 5, 6), (1.0,) * 3, BoundingBox.whole((4, 5, 6)), (1.0,) * 3)
    source = SourceGrid.of(Geometry(shape_zyx=(4, 5, 6), spacing_zyx_mm=(1.0,) * 3))
    logits = torch.randn(labels.channels, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    known = KnownLogits(logits_czyx=logits, region=BoundingBox.whole((4, 5, 6)), grid=grid)
    wanted = output(labels, bits=16)
    wanted.save(tmp_path, "a", [known], source)
    shares = [read(tmp_path / "probabilities" / "a" / name) for name in organ_files(labels)]
    expected = logits.softmax(dim=0).numpy()
    assert organ_files(labels)[1] == "1_core_a.nii.gz"
    for organ, members in enumerate(labels.members, start=1):
        assert np.abs(shares[organ] - expected[list(members)].sum(axis=0)).max() < 1e-4
    alone = dataclasses.replace(known, logits_czyx=logits[:2], independent=True)
    wanted.save(tmp_path, "a", [alone], source)
    shares = [read(tmp_path / "probabilities" / "a" / name) for name in organ_files(labels)]
    sigmoid = logits[:2].sigmoid().numpy()
    assert np.abs(shares[1] - sigmoid[0]).max() < 1e-4
    assert np.abs(shares[0] - (1 - sigmoid.max(axis=0))).max() < 1e-4
    uncertain = np.minimum(sigmoid, 1 - sigmoid).max(axis=0)
    assert np.abs(read(tmp_path / "uncertainty" / "a.nii.gz") - uncertain).max() < 0.5 / 255 + 1e-4


def test_where_a_gpu_lacks_memory_the_mean_goes_on_in_main_memory(monkeypatch):
    monkeypatch.setattr("flaresemi.preprocessing.averaging.SLAB_BYTES", 8 * 5 * 6 * 7 * 2)
    grid = StageGrid.at_spacing((9, 6, 7), (1.0,) * 3, BoundingBox.whole((9, 6, 7)), (1.0,) * 3)
    known = KnownLogits(logits_czyx=torch.randn(5, 9, 6, 7), region=BoundingBox.whole((9, 6, 7)), grid=grid)
    expected, original, brought = list(mean_probabilities([known])), KnownLogits.probabilities, []

    def full(self, box):
        if not brought and box.start[0] >= 4:
            raise RuntimeError("CUDA error: out of memory")
        return original(self, box)

    monkeypatch.setattr(KnownLogits, "probabilities", full)
    monkeypatch.setattr(KnownLogits, "in_main_memory", lambda self: (brought.append(sys.exception()), self)[1])
    found = list(mean_probabilities([known]))
    assert brought == [None]  # the error, whose frames hold memory, is gone by then
    assert [slab for slab, _ in found] == [slab for slab, _ in expected]
    assert all(torch.equal(shares, before) for (_, shares), (_, before) in zip(found, expected, strict=True))


def test_slabs_are_small_whatever_the_number_of_classes(monkeypatch):
    monkeypatch.setattr("flaresemi.preprocessing.averaging.SLAB_BYTES", 8 * 5 * 6 * 7 * 2)
    grid = StageGrid.at_spacing((9, 6, 7), (1.0,) * 3, BoundingBox.whole((9, 6, 7)), (1.0,) * 3)
    known = KnownLogits(logits_czyx=torch.randn(5, 9, 6, 7), region=BoundingBox.whole((9, 6, 7)), grid=grid)
    slabs = list(mean_probabilities([known]))
    assert [slab.shape_zyx[0] for slab, _ in slabs] == [2, 2, 2, 2, 1]
    backwards = list(mean_probabilities([known], axis=2, backwards=True))
    assert [slab.start[2] for slab, _ in backwards] == [6, 5, 4, 3, 2, 1, 0]
    joined = torch.cat([shares for _, shares in reversed(backwards)], dim=3)
    assert torch.allclose(joined, torch.cat([shares for _, shares in slabs], dim=1))


def test_only_files_of_ours_are_removed(tmp_path):
    names = [f"uncertainty/{name}.nii.gz" for name in "ab"]
    (tmp_path / "uncertainty").mkdir()
    source = SourceGrid.of(Geometry(shape_zyx=(2, 3, 4), spacing_zyx_mm=(1.0,) * 3))
    write_channel(tmp_path / names[0], np.zeros((2, 3, 4), np.float32), source)
    saved = SavedProbabilities(bits=8, extent="image", files=dict.fromkeys(names, "0"))
    remove_outdated(tmp_path, saved, {})
    assert (tmp_path / names[0]).is_file()
    assert not holds_shares(tmp_path / names[0])
    with pytest.raises(ValueError, match="no file of"):
        SavedProbabilities(bits=8, extent="image", files={"uncertainty/../../a": "0"})
