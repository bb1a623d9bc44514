"""Writing through libraries that do not say why they failed, or that they did."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flaresemi.errors import ImageError
from flaresemi.files import atomic_path
from flaresemi.io import integrity
from flaresemi.io.text_headers import read_text_header


@contextlib.contextmanager
def written_whole(path: Path, *, expected_bytes: int, ending: str) -> Iterator[Path]:
    """Gives a temporary path with `ending`; what is written there is checked and then takes the name `path`.

    Args:
        path: The final name.
        expected_bytes: Uncompressed size of what will be written.
        ending: Of the temporary name, as the writer chooses the format by it.

    Raises:
        OSError: the system's own error where the writer failed or left half a file because of the disk.
        ImageError: what is there is not whole although the disk could have held it, or what the block raised.
    """
    integrity.check_path(path)
    with atomic_path(path) as temporary:
        # One name with one ending: NIfTI's writer drops the second of two. No file's own name begins with a dot.
        inner = temporary.with_name(f".{temporary.name.split('.')[1]}..whole{ending}")
        inner.touch(0o600, exist_ok=False)  # the writer would follow a link of that name
        try:
            try:
                yield inner
                _check_whole(inner, expected_bytes)
            except ImageError:
                try_disk(path.parent, expected_bytes)
                raise
            inner.replace(temporary)
        finally:
            inner.unlink(missing_ok=True)


def _check_whole(path: Path, expected_bytes: int) -> None:
    with integrity.opened(path) as file:
        if path.name.endswith(".nii"):
            integrity.check_raw(file, count=expected_bytes, offset=0)
        else:
            offset = 0 if path.name.endswith(".nii.gz") else read_text_header(file).voxels.offset or 0
            integrity.inflate(file, count=expected_bytes, offset=offset, keep=False)


def try_disk(folder: Path, count: int) -> None:
    """Writes as many bytes as a library could not, so that a full disk says so itself.

    Raises:
        OSError: it is full, or cannot be written to.
    """
    block = bytes(1 << 20)
    with tempfile.TemporaryFile(dir=folder, prefix=".") as file:
        for _ in range(0, count, len(block)):
            file.write(block)
        file.flush()
