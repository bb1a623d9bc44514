"""Images for the page: each is decompressed once, however many boxes of it are asked for; the last ones are kept."""

import dataclasses
import threading
from collections import OrderedDict

import numpy as np

from flaresemi.dataset import Case
from flaresemi.errors import DatasetError
from flaresemi.io.images import read_channel
from flaresemi.planning.sources import file_stamp

#: As many bytes of images are kept, or the last two. Chosen: six CTs of 512×512×300.
_MOST_BYTES = 1 << 30

#: As many voxels say how bright an image is.
_SAMPLE = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShownImage:
    """One channel of an image.

    Attributes:
        voxels_zyx: Canonical, int16 or float32.
        window: Between which values nearly all of its voxels lie that are not empty.
    """

    voxels_zyx: np.ndarray
    window: tuple[float, float]


@dataclasses.dataclass(slots=True)
class _Entry:
    reading: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    image: ShownImage | None = None


class ShownImages:
    """The images that are looked at.

    Args:
        most_bytes: Of images that are kept.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, int, int, int], _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, case: Case, channel: int) -> ShownImage:
        """An image; who asks while it is read for another one waits for that.

        Raises:
            DatasetError: there is no such channel.
            ImageError: as `read_channel`.
        """
        if not 0 <= channel < len(case.images):
            raise DatasetError("the image has no such channel")
        version = file_stamp(case.images[channel])
        key = (case.id, channel, version.mtime_ns, version.size)
        with self._lock:
            entry = self._kept.setdefault(key, _Entry())
            self._kept.move_to_end(key)
        with entry.reading:
            image = entry.image
            if image is None:
                image = entry.image = _shown(read_channel(case.images, channel))
        self._forget()
        return image

    def _forget(self) -> None:
        """Forgets those that nobody has asked for in the longest time, down to the limit, or to two."""
        with self._lock:
            sizes = {key: each.image.voxels_zyx.nbytes for key, each in self._kept.items() if each.image is not None}
            for key in list(sizes)[:-2]:
                if sum(sizes.values()) <= self._most_bytes:
                    return
                del self._kept[key], sizes[key]


def _shown(voxels_zyx: np.ndarray) -> ShownImage:
    if abs(voxels_zyx.strides[0]) < max(map(abs, voxels_zyx.strides[1:])):  # planes of it would be far apart in memory
        voxels_zyx = np.ascontiguousarray(voxels_zyx)
    step = max(1, round((voxels_zyx.size / _SAMPLE) ** (1 / 3)))
    sample = voxels_zyx[::step, ::step, ::step]
    full = sample[sample > sample.min()]
    low, high = np.percentile(full if full.size else sample, (1, 99))
    return ShownImage(voxels_zyx=voxels_zyx, window=(float(low), float(max(high, low + 1e-6))))
