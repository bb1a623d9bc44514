import numpy as np
import pytest

from flaresemi import room
from flaresemi.errors import ImageError
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.room import enough_memory, refuse_without_disk, refuse_without_memory

WILD = StageGrid.at_spacing((40, 36, 44), (3000.0, 2000.0, 2000.0), BoundingBox.whole((40, 36, 44)), (3.0, 2.0, 2.0))


def test_what_does_not_fit_is_told_with_its_size_and_spacing(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_memory_gib", lambda: 20.0)
    told = r"its 40×36×44 voxels of 3000×2000×2000 mm \(z, y, x\) become 40000×36000×44000 .* TiB"
    with pytest.raises(ImageError, match=told + " of memory, 20 GiB are free") as caught:
        refuse_without_memory(WILD, bytes_per_voxel=4)
    assert "spacing" in caught.value.fix
    with pytest.raises(ImageError, match=told + " on the disk"):
        refuse_without_disk(WILD, tmp_path, bytes_per_voxel=2)


def test_what_fits_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_memory_gib", lambda: 1.0)
    refuse_without_memory(WILD, bytes_per_voxel=4, shape_zyx=(512, 512, 1023))
    refuse_without_disk(WILD, tmp_path, bytes_per_voxel=1e-9)
    with pytest.raises(ImageError):
        refuse_without_memory(WILD, bytes_per_voxel=4, shape_zyx=(512, 512, 1025))
    refuse_without_memory(WILD, bytes_per_voxel=4, shape_zyx=(512, 512, 1025), more_gib=0.1)


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
