"""Whether what an image becomes on another grid makes sense and fits into memory and onto the disk, before it is made.

A wrong spacing in a header (micrometers or meters for millimeters) makes terabytes of a small image.
"""

import contextlib
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from flaresemi.errors import ImageError
from flaresemi.geometry import FloatTriple, IntTriple, StageGrid
from flaresemi.machine import free_memory_gib
from flaresemi.system_errors import lacks_memory

#: Less is always there, or else its lack shows soon: the kernel need not be asked.
_SMALL_GIB = 0.1

#: A voxel that becomes more than this many along an axis shows nothing of what a network looks for. Chosen: slices of
#: 10 mm at 0.5 mm become 20; a header that is wrong by a thousand makes 1000 of one.
_MOST_PER_VOXEL = 250

_FIX = "correct the spacing in the image's header (micrometers or meters for millimeters?), or crop it"


def refuse_unfit(
    grid: StageGrid, *, bytes_per_voxel: float, shape_zyx: IntTriple | None = None, more_gib: float = 0.0
) -> None:
    """Checks that a stage's grid of an image makes sense, and that arrays on it fit into the memory that is free now.

    Args:
        grid: The stage's grid.
        bytes_per_voxel: What is sure to be taken.
        shape_zyx: Of the part of the grid that is worked on; None: all of it.
        more_gib: Memory that may be used besides the main memory.

    Raises:
        ImageError: they do not fit; it tells the image's size and spacing, and what becomes of them.
    """
    voxels = zip(grid.shape_zyx, grid.body_box.shape_zyx, strict=True)
    if any(after > _MOST_PER_VOXEL * before for after, before in voxels):
        raise ImageError(f"{becomes(grid)}: more than {_MOST_PER_VOXEL} of one voxel along an axis", fix=_FIX)
    needed = math.prod(shape_zyx or grid.shape_zyx) * bytes_per_voxel / 2**30
    if needed > _SMALL_GIB and needed > (free := free_memory_gib() + more_gib):
        raise ImageError(f"{becomes(grid)}: {size_text(needed)} of memory, {size_text(free)} are free", fix=_FIX)


def refuse_without_disk(grid: StageGrid, folder: Path, *, bytes_per_voxel: float) -> None:
    """The same for arrays that are written to a folder, which is there.

    Raises:
        ImageError: the disk has no room for them.
    """
    needed = math.prod(grid.shape_zyx) * bytes_per_voxel / 2**30
    if needed > _SMALL_GIB and needed > (free := shutil.disk_usage(folder).free / 2**30):
        raise ImageError(
            f"{becomes(grid)}: {size_text(needed)} on the disk, {size_text(free)} are free", where=folder, fix=_FIX
        )


def becomes(grid: StageGrid) -> str:
    """The result of resampling an image, in words."""
    whose = "its" if grid.body_box.shape_zyx == grid.canonical_shape_zyx else "its body's"
    return (
        f"{whose} {_times(grid.body_box.shape_zyx)} voxels of {_times(grid.canonical_spacing_zyx_mm)} mm (z, y, x) "
        f"become {_times(grid.shape_zyx)} at the network's spacing"
    )


@contextlib.contextmanager
def enough_memory(where: object = None) -> Iterator[None]:
    """Turns a lack of memory in the block into the error of the image that is worked on.

    Raises:
        ImageError: main memory, or that of the GPU, ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not lacks_memory(problem):
            raise
        raise ImageError(
            "there is not enough memory for this image",
            where=where,
            fix="close other programs, or crop or resample it; see whether the spacing in its header is right",
        ) from None


def size_text(gib: float) -> str:
    """A size in the unit that suits it."""
    if gib >= 10240:
        return f"{gib / 1024:.0f} TiB"
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB" if gib >= 0.1 else f"{gib * 1024:.0f} MiB"


def _times(values: FloatTriple | IntTriple) -> str:
    return "×".join(str(value) if isinstance(value, int) else f"{value:.6g}" for value in values)
