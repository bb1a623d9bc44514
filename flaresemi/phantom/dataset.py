"""A folder of synthetic cases, in either layout."""

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from flaresemi import flare22
from flaresemi.compute.parallel import parallel_map, worker_count
from flaresemi.dataset import LAYOUTS, TEST_LABELS
from flaresemi.errors import ConfigError, listed
from flaresemi.geometry import IntTriple
from flaresemi.image_paths import visible_files
from flaresemi.io.images import write_label_map
from flaresemi.phantom.patient import stream
from flaresemi.phantom.phantom import make_phantom
from flaresemi.records import closest, load_json, save_record
from flaresemi.unfinished import remove_leftovers

logger = logging.getLogger(__name__)

#: Names for sizes: shapes between these two are drawn.
SIZES: dict[str, tuple[IntTriple, IntTriple]] = {
    "tiny": ((48, 48, 48), (48, 48, 48)),
    "demo": ((52, 72, 72), (64, 88, 88)),
    "full": ((80, 512, 512), (240, 512, 512)),
}


_PHANTOM = re.compile(r"phantom_\d+(_0000)?\.nii\.gz")


@dataclasses.dataclass(frozen=True, slots=True)
class _Task:
    seed: int
    image: Path
    label: Path | None


def write_phantom_dataset(
    root: Path,
    *,
    layout: str = "flaresemi",
    labeled: int = 8,
    unlabeled: int = 4,
    test: int = 4,
    size: str | IntTriple = "demo",
    seed: int = 0,
    workers: int | None = 1,
) -> None:
    """Writes synthetic cases as a dataset folder: phantom_0001 and on, labeled ones first, then unlabeled, then test.

    Files appear whole; cases whose files exist are kept, so that a killed call is resumed by the same call.

    Args:
        root: The folder; made where it is missing.
        layout: `flaresemi` (no dataset.json: FLARE22's organs are the default) or `nnU-Net` (with one).
        labeled: Number of cases with image and label map.
        unlabeled: Number of images without one.
        test: Number of test images; their label maps stand in `test_mask` or `labelsTs`.
        size: A name of `SIZES`, or the shape (Z, Y, X) around which the cases' shapes vary by an eighth; exact below
            64 voxels.
        seed: Of the dataset. Case by case, phantoms depend on it and on the case's number only.
        workers: Processes; None: one per core, as far as memory allows.

    Raises:
        ConfigError: an unknown layout or size, or a folder with other cases or another dataset.json.
        OSError: the disk is full or the folder cannot be written to.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'{closest(layout, LAYOUTS)}", fix=f"one of {', '.join(LAYOUTS)}")
    smallest, largest = _shapes(size)
    root = Path(root)
    images, masks, unlabeled_images, test_images = (root / folder for folder in LAYOUTS[layout])
    groups = [images] * labeled + [unlabeled_images] * unlabeled + [test_images] * test
    label_folders = {images: masks, test_images: root / TEST_LABELS[layout]}
    tasks = []
    for number, folder in enumerate(groups, start=1):
        name = f"phantom_{number:04d}"
        label_folder = label_folders.get(folder)
        label = None if label_folder is None else label_folder / f"{name}.nii.gz"
        tasks.append(_Task(case_seed(seed, number), folder / f"{name}_0000.nii.gz", label))
    folders = {path.parent for task in tasks for path in (task.image, task.label) if path is not None}
    description = _description(labeled, test) if layout == "nnU-Net" else None
    _refuse_others(root, folders, description)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    waiting = [task for task in tasks if not _is_written(task)]
    logger.info("%s: %d synthetic cases to make, %d are there", root, len(waiting), len(tasks) - len(waiting))
    write = functools.partial(_write_case, smallest=smallest, largest=largest)
    # A case in the making holds the volume, its file's copy and the slab: about 12 bytes a voxel and half a GiB.
    gib = 0.5 + 12 * largest[0] * largest[1] * largest[2] / 2**30
    for _ in parallel_map(write, waiting, workers=worker_count(gib, workers), progress="phantom"):
        pass
    if description is not None:
        save_record(root / "dataset.json", description)


def _refuse_others(root: Path, folders: Iterable[Path], description: dict[str, object] | None) -> None:
    """Checks that synthetic cases are not mixed with others.

    Raises:
        ConfigError: they would be, or a dataset.json that is no phantoms' be replaced.
    """
    found = [path for folder in sorted(folders) for path in visible_files(folder) if not _PHANTOM.match(path.name)]
    path = root / "dataset.json"
    if description is not None and os.path.lexists(path):
        counts = {name: description[name] for name in ("numTraining", "numTest")}
        try:
            present = load_json(path, error=ConfigError)
        except ConfigError:
            present = None
        if not isinstance(present, dict) or present | counts != description:
            found.append(path)
    if found:
        raise ConfigError(
            f"there are other files where synthetic cases would be written: {listed([each.name for each in found])}",
            where=found[0].parent,
            fix="name another folder",
        )


def case_seed(seed: int, number: int) -> int:
    """The seed of a dataset's case: unrelated between datasets and numbers."""
    return int(stream(seed, f"case {number}").integers(2**31))


def _write_case(task: _Task, smallest: IntTriple, largest: IntTriple) -> None:
    rng = stream(task.seed, "shape")
    depth = int(rng.integers(smallest[0], largest[0] + 1))
    share = rng.random()
    height, width = (round(low + share * (high - low)) for low, high in zip(smallest[1:], largest[1:], strict=True))
    phantom = make_phantom(task.seed, shape_zyx=(depth, height, width))
    if task.label is not None:
        write_label_map(task.label, phantom.label, phantom.source)
    # An image in whole HU is an array of integers on a grid like any label map.
    write_label_map(task.image, phantom.image_hu, phantom.source)


def _is_written(task: _Task) -> bool:
    return task.image.exists() and (task.label is None or task.label.exists())


def _shapes(size: str | IntTriple) -> tuple[IntTriple, IntTriple]:
    if isinstance(size, str):
        if size not in SIZES:
            raise ConfigError(f"unknown size '{size}'{closest(size, SIZES)}", fix=f"one of {', '.join(SIZES)}")
        return SIZES[size]
    if len(size) != 3 or min(size) < 2:
        raise ConfigError(f"a phantom has three axes of at least two voxels, found {tuple(size)}")
    low, high = (tuple(n if n < 64 else round(n * factor) for n in size) for factor in (0.875, 1.125))
    return low, high  # type: ignore[return-value]


def _description(labeled: int, test: int) -> dict[str, object]:
    return {
        "name": "phantom",
        "description": "synthetic abdominal CT with the 13 FLARE22 organs",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {label.name: label.value for label in flare22.LABELS.labels},
        "file_ending": ".nii.gz",
        "numTraining": labeled,
        "numTest": test,
    }
