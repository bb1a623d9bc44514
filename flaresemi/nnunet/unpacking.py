"""What prediction needs of the archive that nnUNetv2_export_model_to_zip writes, and the names of nnU-Net's files."""

import contextlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from flaresemi.errors import CheckpointError, shown

#: nnU-Net's names of what our command calls final, best and latest.
CHECKPOINTS = {
    "final": "checkpoint_final.pth",
    "best": "checkpoint_best.pth",
    "latest": "checkpoint_latest.pth",
}

FOLD = re.compile(r"fold_(?P<fold>\d+|all)")
JSON = ("plans.json", "dataset.json")

#: What nnU-Net found to mend label maps best, in the folder of a cross-validation; the second is not opened.
POSTPROCESSING, PICKLED = "postprocessing.json", "postprocessing.pkl"

#: What an archive may unpack to. Chosen: weights hardly shrink, text by ten.
_MOST_RATIO = 50
MOST_JSON_BYTES = 64 << 20


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """What prediction needs of an archive, in a folder for as long as it is read.

    Raises:
        CheckpointError: it is damaged, names places outside of itself, or unpacks to far more than it is.
    """
    with tempfile.TemporaryDirectory(prefix="flaresemi_") as temporary:
        try:
            with zipfile.ZipFile(path) as archive:
                needed = _entries(archive, path)
                for entry, place in needed.items():
                    target = Path(temporary, *place)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if target.name == PICKLED:  # that it is there says enough
                        target.touch()
                        continue
                    with archive.open(entry) as source, open(target, "wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
        except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError) as problem:
            raise CheckpointError(
                f"this archive is damaged: {shown(str(problem), 200)}", where=path, fix="copy it again"
            ) from None
        yield Path(temporary)


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[zipfile.ZipInfo, tuple[str, ...]]:
    """The entries that are needed, and where they belong."""
    needed: dict[zipfile.ZipInfo, tuple[str, ...]] = {}
    for entry in archive.infolist():
        place = PurePosixPath(entry.filename)
        link = entry.external_attr >> 28 == 0xA
        if place.is_absolute() or ".." in place.parts or "\\" in entry.filename or ":" in entry.filename or link:
            raise CheckpointError(
                f"this archive would write outside of its folder: {shown(entry.filename)}",
                where=path,
                fix="it is no export of nnU-Net: get the model again from whom you trust",
            )
        text = place.name in JSON or place.name == POSTPROCESSING
        wanted = text or place.name == PICKLED or _is_checkpoint(place)
        if not wanted or entry.is_dir():
            continue
        most = MOST_JSON_BYTES if text else _MOST_RATIO * entry.compress_size + (1 << 20)
        if entry.file_size > most:
            raise CheckpointError(
                f"this archive unpacks to far more than weights do: {shown(entry.filename)} from "
                f"{entry.compress_size} to {entry.file_size} bytes",
                where=path,
                fix="it is no export of nnU-Net: get the model again from whom you trust",
            )
        if place.parts in needed.values():
            raise CheckpointError(f"this archive holds {shown(entry.filename)} twice", where=path, fix="copy it again")
        needed[entry] = place.parts
    return needed


def _is_checkpoint(place: PurePosixPath) -> bool:
    return place.name in CHECKPOINTS.values() and FOLD.fullmatch(place.parent.name) is not None
