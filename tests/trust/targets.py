"""What is fuzzed: files of every kind that is read, and what must hold for each of them however it was spoilt.

An input may be refused by a `FlaresemiError` with a readable message, or be read. Anything else is a finding: another
exception, a warning of a library, voxels from a file that the header had no business with, a name that leads out of
its folder, a result that cannot be written and read again.
"""

import contextlib
import dataclasses
import enum
import gzip
import io
import json
import os
import random
import shutil
import tempfile
import types
import typing
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK as sitk
import torch

from flaresemi.case_names import check_name
from flaresemi.cli.demo import DemoRecord
from flaresemi.cli.inputs import find_cases, output_paths
from flaresemi.comparing.predicting import HeldOutResult
from flaresemi.dataset import load_dataset
from flaresemi.errors import DatasetError, FlaresemiError
from flaresemi.evaluation.summary import Summary
from flaresemi.geometry import BoundingBox, StageGrid
from flaresemi.inference.choice import BestConfiguration
from flaresemi.inference.dicom_output import DicomOutput
from flaresemi.inference.levels import SpeedLevels
from flaresemi.inference.prediction_records import PredictionRecord
from flaresemi.inference.segmentation import Segmentation
from flaresemi.io.case_store import CaseRecord, CaseStore
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, _Header, load_checkpoint, load_weights, save_checkpoint
from flaresemi.networks.kept import KeptFile
from flaresemi.planning.decisions import Decisions
from flaresemi.planning.findings import load_warnings
from flaresemi.planning.fingerprint import _Kept
from flaresemi.planning.inspection import InspectedCases
from flaresemi.planning.preparation import _Source
from flaresemi.planning.splits import Splits
from flaresemi.plans import DatasetFingerprint, Plans, StagePlan
from flaresemi.pseudolabels.calibration import Calibration, Observations
from flaresemi.pseudolabels.exporting import ExportRecord
from flaresemi.pseudolabels.vitals import Vitals
from flaresemi.ranges import range_of, type_hints
from flaresemi.records import dumps, load_record, save_record
from flaresemi.review.exchange import ExportedQueue
from flaresemi.reviews import Review
from flaresemi.rounds.chain import ChainState
from flaresemi.rounds.final import FinalState
from flaresemi.rounds.reviewed import TakenReviews
from flaresemi.rounds.state import RoundState
from flaresemi.selection import CaseScore, Selection, load_scores, save_scores
from flaresemi.training.budget import BudgetState
from flaresemi.training.config import TrainingConfig
from flaresemi.training.history import cut_history
from flaresemi.training.runs import RunRecord
from flaresemi.training.task import Origin, Teaching
from flaresemi.training.validation import CaseResult
from tests.made_dicom import Stack
from tests.made_nrrd import segment_fields, write_nrrd
from tests.test_plans import FINE, LABELS, PLANS
from tests.trust.mutations import mutate, spoil

#: Every class that a JSON file of ours is read into; a test compares it with the calls in the package.
RECORDS = (
    BestConfiguration, BudgetState, CaseRecord, CaseResult, CaseScore, Calibration, ChainState, DatasetFingerprint,
    Decisions, DemoRecord, ExportRecord, ExportedQueue, FinalState, HeldOutResult, InspectedCases, KeptFile,
    Observations, Origin, Plans, PredictionRecord, Review, RoundState, RunRecord, Selection, SpeedLevels, Splits,
    Summary, TakenReviews, Teaching, TrainingConfig, Vitals, _Header, _Kept, _Source,
)  # fmt: skip

#: Bytes of a file that no header may lead to.
CANARY = 0x5A

#: Where files are written; in memory, where there is such a place, since writes wait for the disk.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Violation(Exception):
    """Something that must not happen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of file.

    Attributes:
        seeds: Whole files by name.
        read: Reads a spoilt one, under the name it has in its folder.
        spoil: From a seed's content to a spoilt one.
        together: The seeds are one thing: the others stand, whole, beside the one that is spoilt.
    """

    seeds: dict[str, bytes]
    read: Callable[[Path], object]
    spoil: Callable[[random.Random, bytes, list[bytes]], bytes] = mutate
    together: bool = False


def try_one(target: Target, seed: str, folder: Path) -> str:
    """Spoils one file and reads it; 'refused' or 'read'.

    Args:
        seed: Decides the file and how it is spoilt.
        folder: To work in; `case` in it is emptied before.

    Raises:
        Exception: a finding.
    """
    rng = random.Random(seed)
    name = rng.choice(sorted(target.seeds))
    content = target.spoil(rng, target.seeds[name], list(target.seeds.values()))
    path = folder / "case" / name
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    for other, whole in target.seeds.items() if target.together else ():
        path.with_name(other).write_bytes(whole)
    if not (folder / "secret.raw").exists():
        (folder / "secret.raw").write_bytes(bytes([CANARY]) * 20_000)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            target.read(path)
        except FlaresemiError as error:
            if "not enough memory" in error.what:
                raise Violation("memory was asked for that such a file cannot need") from error
            if len(str(error)) > 2000 or not error.what.strip():
                raise Violation(f"a message of {len(str(error))} characters") from error
            return "refused"
    return "read"


def targets(shared: Path | None = None) -> dict[str, Callable[[], Target]]:
    """What can be fuzzed, by name; each is made when it is called.

    Args:
        shared: Folder of odd real files, used as seeds where they fit.
    """
    return {
        "nifti": lambda: Target(
            seeds=_made_images(".nii", ".nii.gz") | _made_forms() | _real(shared, ".nii", ".nii.gz"),
            read=_read_images,
            spoil=_unpacked,
        ),
        "metaimage": lambda: Target(seeds=_made_images(".mha", ".mhd") | _real(shared, ".mha"), read=_read_images),
        "nrrd": lambda: Target(seeds=_made_images(".nrrd") | _real(shared, ".nrrd"), read=_read_images),
        "segmentation": lambda: Target(seeds=_made_segmentations(), read=_read_images),
        "dicom segmentation": lambda: Target(seeds=_made_dicom_segmentations(), read=_check_labels),
        "dicom": lambda: Target(seeds=_made_slices(), read=_read_slices, together=True),
        "stored case": lambda: Target(seeds=_made_case(), read=_read_case, together=True),
        "checkpoint": lambda: Target(seeds=_made_checkpoint(), read=_read_checkpoint, spoil=_repacked),
        "records": lambda: Target(seeds=_made_records(), read=_read_record),
        "dataset.json": lambda: Target(seeds=_made_descriptions(), read=_read_dataset),
        "scores.csv": lambda: Target(seeds=_made_scores(), read=_read_scores),
        "integrity.csv": lambda: Target(seeds=_made_findings(), read=load_warnings),
        "history.jsonl": lambda: Target(seeds=_made_history(), read=lambda path: cut_history(path, 20)),
        "lists": lambda: Target(seeds=_made_lists(), read=_read_list),
    }


# Images


def _made_images(*endings: str) -> dict[str, bytes]:
    made = {}
    for number, dtype in enumerate((np.uint8, np.int16, np.float32)):
        image = sitk.GetImageFromArray((np.arange(5 * 6 * 7) % 99).reshape(5, 6, 7).astype(dtype))
        image.SetSpacing((0.8, 0.9, 2.5))
        image.SetOrigin((-10.0, 20.0, 5.0))
        for ending in endings:
            if ending == ".mhd":
                continue
            made |= _written(image, f"made_{number}{ending}", compressed=ending == ".nii.gz")
            if ending in (".mha", ".nrrd"):
                made |= _written(image, f"made_{number}_deflated{ending}", compressed=True)
    if ".mhd" in endings:
        made["detached.mhd"] = made["made_0.mha"].split(b"LOCAL")[0] + b"detached.raw\n"
    if ".nrrd" in endings:
        head, _, voxels = made["made_0.nrrd"].partition(b"\n\n")
        made["detached.nrrd"] = head + b"\ndata file: detached.raw\n"
        made["text.nrrd"] = head.replace(b"encoding: raw", b"encoding: ascii") + b"\n\n" + b" ".join(
            str(value).encode() for value in voxels
        )  # fmt: skip
        made["hex.nrrd"] = head.replace(b"encoding: raw", b"encoding: hex") + b"\n\n" + voxels.hex().encode()
    return made


def _made_forms() -> dict[str, bytes]:
    """NIfTI-1 and -2 whose sform and qform differ, one in microns; the voxels have a scale."""
    made = {}
    for kind, unit, name in ((nibabel.Nifti1Image, 2, "forms_1"), (nibabel.Nifti2Image, 3, "forms_2")):
        image = kind((np.arange(210) % 9).reshape(7, 6, 5).astype(np.uint8), None)
        image.set_sform([[0, 0.8, 0, 5], [-0.9, 0, 0, 6], [0, 0, 2.5, 7], [0, 0, 0, 1]], 2)
        image.set_qform(np.diag([-0.8, -0.9, 2.5, 1]), 1)
        image.header["xyzt_units"] = unit
        image.header.set_slope_inter(0.125, 0)
        made[f"{name}.nii"] = image.to_bytes()
    return made


def _made_segmentations() -> dict[str, bytes]:
    one, two = np.zeros((2, 5, 6, 7), np.uint8)
    one[1:3, 1:3], two[3:, 3:] = 1, 2
    fields = segment_fields(("liver", 1, 0), ("spleen", 2, 1))
    units = ['space units: "um" "mm" "cm"']
    with _scratch() as folder:
        made = (
            write_nrrd(folder / "layers.seg.nrrd", [one, two], fields=fields),
            write_nrrd(folder / "last.seg.nrrd", [one, two], fields=fields + units, layers_last=True, compressed=True),
            write_nrrd(folder / "flat.seg.nrrd", one + two, fields=fields + units),
            write_nrrd(folder / "old.seg.nrrd", [one, two // 2], fields=segment_fields(("a", None, None))),
        )
        return {path.name: path.read_bytes() for path in made}


#: What the values of segmentations stand for.
_SEGMENTED = LabelSet(labels=(Label(name="liver", value=1), Label(name="spleen", value=2)))


def _made_dicom_segmentations() -> dict[str, bytes]:
    made = {}
    with _scratch() as folder:
        Stack(array_zyx=np.zeros((4, 16, 16), np.int16)).write(folder / "scan")
        source = read_grid(folder / "scan")
        indices = np.random.default_rng(0).integers(0, 3, source.canonical.shape_zyx).astype(np.uint8)
        segmentation = Segmentation(indices_zyx=indices, labels=_SEGMENTED, source=source, notes=(), seconds={})
        output = DicomOutput(format="dicom-seg", labels=_SEGMENTED, codes={})
        output.write(folder / "scan", folder / "whole.seg.dcm", segmentation)
        made["whole.seg.dcm"] = (folder / "whole.seg.dcm").read_bytes()
        numbers = pydicom.dcmread(folder / "whole.seg.dcm")
        numbers.SOPClassUID = numbers.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
        numbers.SegmentationType, numbers.BitsAllocated, numbers.BitsStored, numbers.HighBit = "LABELMAP", 8, 8, 7
        numbers.PixelData = bytes(np.arange(int(numbers.NumberOfFrames) * 256, dtype=np.uint32).astype(np.uint8) % 3)
        numbers.save_as(folder / "numbers.seg.dcm")
        made["numbers.seg.dcm"] = (folder / "numbers.seg.dcm").read_bytes()
    return made


def _written(image: sitk.Image, name: str, *, compressed: bool) -> dict[str, bytes]:
    with _scratch() as folder:
        sitk.WriteImage(image, str(folder / name), compressed)
        return {name: (folder / name).read_bytes()}


def _real(shared: Path | None, *endings: str) -> dict[str, bytes]:
    """Odd real files; small ones, since most of the time would go into decompressing."""
    if shared is None:
        return {}
    found = sorted(path for path in shared.rglob("*") if path.name.endswith(endings))
    return {path.name: path.read_bytes() for path in found if path.stat().st_size < 100_000}


def _unpacked(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Spoils what is inside a gzip file more often than its outside."""
    if content[:2] != b"\x1f\x8b" or rng.random() < 0.3:
        return mutate(rng, content, others)
    try:
        inside = gzip.decompress(content)
    except (OSError, EOFError):
        return mutate(rng, content, others)
    packed = gzip.compress(mutate(rng, inside, others), compresslevel=1, mtime=0)
    return mutate(rng, packed, others) if rng.random() < 0.1 else packed


def _read_images(path: Path) -> None:
    (path.parent / "detached.raw").write_bytes(bytes(range(210)))
    errors = []
    for read in (read_grid, lambda path: _check_image(read_image([path])), lambda path: _check_labels(path)):
        try:
            read(path)
        except FlaresemiError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


def _check_image(image: typing.Any) -> None:
    if image.array_czyx.dtype != np.float32 or image.array_czyx.shape[1:] != image.geometry.shape_zyx:
        raise Violation("an image off its grid")
    if not np.isfinite(image.array_czyx).all():
        raise Violation("a voxel that is not finite")


def _check_labels(path: Path) -> None:
    found = read_label_map(path, _SEGMENTED)
    if found.array_zyx.dtype.kind not in "iu" or found.array_zyx.shape != found.geometry.shape_zyx:
        raise Violation("a label map off its grid")
    stored = np.frombuffer(found.array_zyx.tobytes(), np.uint8)
    if stored.size > 20 and np.mean(stored == CANARY) > 0.9:
        raise Violation("voxels of a file outside of the header's folder")
    written = path.parent / "written.nii"
    write_label_map(written, found.array_zyx, found.source)
    again = read_label_map(written)
    apart = again.geometry.far_corner_distance_mm(found.geometry)
    if apart > 1e-4 * max(1.0, *map(abs, found.geometry.origin_xyz_mm), *found.geometry.extent_zyx_mm):
        raise Violation(f"a label map that is written {apart} mm from its image")
    if not np.array_equal(again.array_zyx, found.array_zyx):
        raise Violation("a label map that is another one when it is read again")


def _made_slices() -> dict[str, bytes]:
    stack = Stack(array_zyx=np.random.default_rng(0).integers(-1000, 1000, (4, 16, 16)).astype(np.int16))
    with _scratch() as folder:
        paths = stack.write(folder)
        for path, syntax in ((paths[1], "1.2.840.10008.1.2.5"), (paths[2], "1.2.840.10008.1.2.1.99")):
            dataset = pydicom.dcmread(path)
            if syntax.endswith(".5"):
                dataset.compress(syntax, encoding_plugin="pydicom")
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(path)
        return {path.name: path.read_bytes() for path in paths}


def _read_slices(path: Path) -> None:
    _check_image(read_image([path.parent]))


# What flaresemi writes


def _made_case() -> dict[str, bytes]:
    shape = (6, 7, 8)
    label = np.zeros(shape, np.uint8)
    label[2:4, 2:5, 3:6] = 1
    label[5, 5, 5] = 2
    grid = StageGrid(canonical_shape_zyx=shape, canonical_spacing_zyx_mm=(1.0, 1.0, 1.0),
                     body_box=BoundingBox.whole(shape), shape_zyx=shape)  # fmt: skip
    record = CaseRecord.labeled(
        case_id="case", preprocessing_hash="x", grid=grid, label_zyx=label, organs=2, supervised=(1, 2)
    )
    with _scratch() as folder:
        CaseStore(folder).write(record, np.ones((1, *shape), np.float32), label)
        return {path.name: path.read_bytes() for path in (folder / "case").iterdir()}


def _read_case(path: Path) -> None:
    store = CaseStore(path.parent.parent)
    store.has("case", "x")
    stored = store.open("case")
    for index in range(1, len(stored.record.voxels_per_label) + 1):
        stored.class_voxels(index).sum()
    image, label = stored.read_patch((-2, 1, 3), (4, 4, 4))
    if image.shape[1:] != (4, 4, 4) or (label is not None and label.shape != (4, 4, 4)):
        raise Violation("a patch of another shape")


def _made_checkpoint() -> dict[str, bytes]:
    network = build_network(FINE.network)
    checkpoint = Checkpoint(
        plan=FINE, body="ct", channels=("CT",), labels=LABELS, fold="0", iteration=5, total_iterations=9,
        weights=network.state_dict(), mirror_axes=(0,), keep_largest=("liver",),
        training_state={"optimizer": {"step": 5, "moments": [torch.ones(3)]}}, version="0",
    )  # fmt: skip
    with _scratch() as folder:
        save_checkpoint(folder / "model.pt", checkpoint)
        return {"model.pt": (folder / "model.pt").read_bytes()}


def _repacked(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Spoils the archive, a file in it (with the right checksum), or what the pickled content says."""
    way = rng.random()
    if way < 0.3:
        return mutate(rng, content, others)
    made = io.BytesIO()
    if way < 0.7:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as copy:
            names = archive.namelist()
            taken = "archive/data.pkl" if "archive/data.pkl" in names and rng.random() < 0.8 else rng.choice(names)
            for name in names:
                inside = archive.read(name)
                copy.writestr(name, mutate(rng, inside, others) if name == taken else inside)
        return made.getvalue()
    value = torch.load(io.BytesIO(content), weights_only=True)
    if rng.random() < 0.6:
        value["header"] = json.dumps(spoil(rng, json.loads(value["header"])))
    else:
        odd = (
            None, 3, "x", [], {}, {"x": 1}, {1: torch.ones(2)}, {"heads.0.weight": torch.ones(1)}, torch.ones(2),
            {"a": torch.ones(1).expand(1 << 40)}, {"a": torch.ones(2).to_sparse()}, {"a": torch.tensor(float("nan"))},
        )  # fmt: skip
        value[rng.choice(list(value))] = rng.choice(odd)
    torch.save(value, made)
    return made.getvalue()


def _read_checkpoint(path: Path) -> None:
    checkpoint = load_checkpoint(path, with_training_state=True)
    network = build_network(checkpoint.plan.network)
    load_weights(network, checkpoint, where=path)


def _made_records() -> dict[str, bytes]:
    rng = random.Random(0)
    made = {}
    for cls in RECORDS:
        for number in range(3):
            made[f"{cls.__name__}.{number}.json"] = json.dumps(example(rng, cls)).encode()
    made["Plans.0.json"] = dumps(PLANS).encode()
    made["StagePlan.0.json"] = dumps(FINE).encode()
    return made


def example(rng: random.Random, cls: object) -> object:
    """A value in plain JSON that fits the types of a record (what it checks besides may refuse it)."""
    origin, arguments = typing.get_origin(cls), typing.get_args(cls)
    if dataclasses.is_dataclass(cls):
        hints = type_hints(cls)
        return {field.name: field.default if field.name == "schema_version" else example(rng, hints[field.name])
                for field in dataclasses.fields(cls)}  # fmt: skip
    if origin is typing.Annotated:
        known = range_of(cls)
        plain = example(rng, arguments[0])
        if known is None or plain in known:
            return plain
        return arguments[0](min(max(known.low, 1), known.high))
    if origin in (typing.Union, types.UnionType):
        return example(rng, rng.choice(arguments))
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return [example(rng, arguments[0]) for _ in range(rng.choice((1, 2, 3)))]
    if origin is tuple:
        return [example(rng, each) for each in arguments]
    if origin is dict:
        return {f"k{number}": example(rng, arguments[1]) for number in range(2)}
    if origin is typing.Literal:
        return arguments[0]
    if isinstance(cls, type) and issubclass(cls, enum.Enum):
        return next(iter(cls)).value
    plain = {
        int: rng.randrange(1, 9),
        float: rng.random() + 0.1,
        str: rng.choice("abc"),
        bool: True,
        types.NoneType: None,
    }
    return plain[cls]  # type: ignore[index]


def _read_record(path: Path) -> None:
    cls = {each.__name__: each for each in (*RECORDS, StagePlan)}[path.name.split(".")[0]]
    record = load_record(path, cls, error=DatasetError)
    save_record(path, record)
    if load_record(path, cls) != record:
        raise Violation("a record that is another one when it is read again")


def _made_descriptions() -> dict[str, bytes]:
    whole = {
        "name": "d", "channel_names": {"0": "CT"}, "mirror_pairs": [],
        "labels": {"background": 0, "liver": 1, "left kidney": 2, "aorta": 8},
        "z_range": ["aorta"], "tolerances_mm": {"liver": 5, "aorta": 2.5},
        "annotated_labels": {"case": ["liver", "aorta"]}, "numTraining": 1,
    }  # fmt: skip
    decathlon = {"name": "d", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "liver", "2": "spleen"}}
    return {"dataset.json": json.dumps(whole).encode(), "decathlon.json": json.dumps(decathlon).encode()}


def _read_dataset(path: Path) -> None:
    for name in ("labeled_image/case_0000.nii", "labeled_mask/case.nii"):
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).touch()
    os.replace(path, path.parent / "dataset.json")
    found = load_dataset(path.parent)
    dumps(found.labels)
    found.labels.to_indices(np.zeros((1, 1, 1), np.int32))
    found.name.encode()


def _made_scores() -> dict[str, bytes]:
    organs = ("liver", "left kidney")
    rows = ["case_id,score,flags,made_with," + ",".join(
        f"{organ}: {column}" for organ in organs
        for column in ("agreement", "predicted_dice", "volume_ml", "entropy", "touched_faces")
    )]  # fmt: skip
    rows += [f"case_{number},0.9,a; b,h1 h2,0.9,,12.5,0.1,0,,,0.0,,0" for number in range(3)]
    return {"scores.csv": ("\n".join(rows) + "\n").encode()}


def _read_scores(path: Path) -> None:
    scores = load_scores(path)
    save_scores(path, scores)
    if load_scores(path) != scores:
        raise Violation("scores that are others when they are read again")


def _made_findings() -> dict[str, bytes]:
    head = ("case,group,severity,problem,file,message,remedy,shape_zyx,spacing_zyx_mm,orientation,minimum,maximum,"
            "label_values\n")  # fmt: skip
    return {"integrity.csv": (head + 'a,labeled,warning,odd,"x, y",m,r,1 2 3,1 1 1,LPS,0,1,0-3\n' * 3).encode()}


def _made_history() -> dict[str, bytes]:
    rows = [{"iteration": 10 * number, "loss": 1 / (number + 1), "dice": None} for number in range(5)]
    return {"history.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def _made_lists() -> dict[str, bytes]:
    return {"list.txt": b"# scans\nscan.nii.gz\n\nb_0000.nii\n./c.mha\n"}


def _read_list(path: Path) -> None:
    for name in ("scan.nii.gz", "b_0000.nii", "c.mha"):
        (path.parent / name).touch()
    cases = find_cases(path, channels=1)
    output = path.parent / "out"
    for case, written in zip(cases, output_paths(cases, path, output), strict=True):
        check_name(case.id)
        if written.parent != output or os.path.normpath(written) != str(written):
            raise Violation(f"a label map outside of its folder: {written}")


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        yield Path(folder)
