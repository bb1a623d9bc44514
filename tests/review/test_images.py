"""An image that is looked at is decompressed once; what was read for the page is what training reads."""

import os
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

from flaresemi.dataset import Case
from flaresemi.errors import DatasetError, ImageError
from flaresemi.io.images import read_image
from flaresemi.review import images
from flaresemi.review.images import ShownImages


def case(folder: Path, name: str, *channels: np.ndarray, affine: np.ndarray | None = None, slope: float = 1.0) -> Case:
    folder.mkdir(exist_ok=True)
    paths = []
    for number, voxels in enumerate(channels):
        image = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
        if slope != 1.0:
            image.header.set_slope_inter(slope, -5.0)
        paths.append(folder / f"{name}_{number:04d}.nii.gz")
        nibabel.save(image, paths[-1])
    return Case(id=name, images=tuple(paths))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The channels that were read."""
    found, read = [], images.read_channel

    def counted(paths: tuple[Path, ...], channel: int) -> np.ndarray:
        found.append(channel)
        return read(paths, channel)

    monkeypatch.setattr(images, "read_channel", counted)
    return found


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32", "float64", ">i2"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_numbers_are_those_of_training(tmp_path: Path, dtype: str, order: tuple[int, ...]) -> None:
    voxels = (np.random.default_rng(0).random((5, 6, 7)) * 90).astype(dtype)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1.0, -2.0, 3.0])[:, order]
    found = case(tmp_path, "a", voxels, affine=affine)
    shown = ShownImages().get(found, 0)
    assert shown.voxels_zyx.dtype == (np.float32 if dtype.startswith("float") else np.int16)
    assert np.array_equal(shown.voxels_zyx, read_image(found.images).array_czyx[0])
    assert abs(shown.voxels_zyx.strides[0]) == max(map(abs, shown.voxels_zyx.strides))


def test_scaled_large_and_unusable_numbers(tmp_path: Path) -> None:
    scaled = case(tmp_path, "a", np.arange(60, dtype=np.int16).reshape(3, 4, 5), slope=0.5)
    large = case(tmp_path, "b", np.full((3, 4, 5), 60_000, np.uint16))
    broken = np.arange(60, dtype=np.float32).reshape(3, 4, 5) / 7
    broken[0, 0, 0] = np.nan
    for found in (scaled, large, case(tmp_path, "c", broken)):
        shown = ShownImages().get(found, 0)
        assert shown.voxels_zyx.dtype == np.float32
        assert np.array_equal(shown.voxels_zyx, read_image(found.images).array_czyx[0])
        assert shown.window[0] < shown.window[1]


def test_channels_are_read_one_by_one_and_lie_on_one_grid(tmp_path: Path, reads: list[int]) -> None:
    first, second = (np.full((3, 4, 5), value, np.int16) for value in (1, 2))
    found, shown = case(tmp_path, "a", first, second), ShownImages()
    assert shown.get(found, 1).voxels_zyx.max() == 2
    assert reads == [1]
    for channel in (-1, 2):
        with pytest.raises(DatasetError, match="no such channel"):
            shown.get(found, channel)
    with pytest.raises(ImageError, match="one grid"):
        shown.get(case(tmp_path, "b", first, second[1:]), 1)


def test_an_image_is_read_anew_when_voxels_beside_its_header_change(tmp_path: Path, reads: list[int]) -> None:
    header, voxels = tmp_path / "a.mhd", tmp_path / "a.raw"
    header.write_text("NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = a.raw\n")
    found, shown = Case(id="a", images=(header,)), ShownImages()
    for value in (1, 1, 2):
        voxels.write_bytes(bytes([value] * 8))
        os.utime(voxels, ns=(value, value))
        assert shown.get(found, 0).voxels_zyx.max() == value
    assert reads == [0, 0]


def test_an_image_is_read_once_however_many_ask_and_anew_when_it_changes(tmp_path: Path, reads: list[int]) -> None:
    found, shown = case(tmp_path, "a", np.ones((3, 4, 5), np.int16)), ShownImages()
    threads = [threading.Thread(target=shown.get, args=(found, 0)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [0]
    case(tmp_path, "a", np.full((3, 4, 5), 7, np.int16))
    os.utime(found.images[0], ns=(1, 1))
    assert shown.get(found, 0).voxels_zyx.max() == 7
    assert reads == [0, 0]
    found.images[0].unlink()
    with pytest.raises(ImageError):
        shown.get(found, 0)
    case(tmp_path, "a", np.full((3, 4, 5), 8, np.int16))  # a failure is not kept
    assert shown.get(found, 0).voxels_zyx.max() == 8


def test_the_last_two_are_kept_and_others_as_far_as_they_fit(tmp_path: Path, reads: list[int]) -> None:
    cases = [case(tmp_path, name, np.full((3, 4, 5), 3, np.int16)) for name in "abcd"]
    small = ShownImages(most_bytes=1)
    for each in (*cases, cases[3], cases[2], cases[0]):
        small.get(each, 0)
    assert len(reads) == 5
    large = ShownImages(most_bytes=3 * 120)
    reads.clear()
    for each in (*cases, cases[1], cases[0]):
        large.get(each, 0)
    assert len(reads) == 5
