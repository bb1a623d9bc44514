import numpy as np
import pytest

from flaresemi import room
from flaresemi.errors import ImageError
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.room import enough_memory, refuse_unfit, refuse_without_disk

WHOLE = BoundingBox.whole((40, 36, 44))
WILD = StageGrid.at_spacing((40, 36, 44), (300.0, 200.0, 200.0), WHOLE, (3.0, 2.0, 2.0))


def test_what_does_not_fit_is_told_with_its_size_and_spacing(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_memory_gib", lambda: 20.0)
    told = r"its 40×36×44 voxels of 300×200×200 mm \(z, y, x\) become 4000×3600×4400 .* [0-9]+ GiB"
    with pytest.raises(ImageError, match=told + " of memory, 20 GiB are free") as caught:
        refuse_unfit(WILD, bytes_per_voxel=4)
    assert "spacing" in caught.value.fix
    with pytest.raises(ImageError, match=told + " on the disk"):
        refuse_without_disk(WILD, tmp_path, bytes_per_voxel=2)


def test_what_fits_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_memory_gib", lambda: 1.0)
    refuse_unfit(WILD, bytes_per_voxel=4, shape_zyx=(512, 512, 1023))
    refuse_without_disk(WILD, tmp_path, bytes_per_voxel=1e-9)
    with pytest.raises(ImageError):
        refuse_unfit(WILD, bytes_per_voxel=4, shape_zyx=(512, 512, 1025))
    refuse_unfit(WILD, bytes_per_voxel=4, shape_zyx=(512, 512, 1025), more_gib=0.1)


@pytest.mark.parametrize(
    "problem",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("CUDA out of memory.")],
)
def test_lack_of_memory_is_the_error_of_the_image(problem):
    with pytest.raises(ImageError, match="not enough memory"), enough_memory():
        raise problem
    with pytest.raises(RuntimeError, match="another"), enough_memory():
        raise RuntimeError("another")
    with pytest.raises(ImageError, match="not enough memory"), enough_memory("x.nii"):
        np.empty(1 << 50, np.float64)


def test_a_voxel_that_becomes_hundreds_makes_no_sense():
    slices = StageGrid.at_spacing((40, 36, 44), (100.0, 2.0, 2.0), WHOLE, (0.5, 2.0, 2.0))
    refuse_unfit(slices, bytes_per_voxel=4)
    wrong = StageGrid.at_spacing((40, 36, 44), (3000.0, 2.0, 2.0), WHOLE, (3.0, 2.0, 2.0))
    with pytest.raises(ImageError, match=r"of 3000×2×2 mm .* become 40000×36×44 .*: more than 250 of one voxel"):
        refuse_unfit(wrong, bytes_per_voxel=4)
