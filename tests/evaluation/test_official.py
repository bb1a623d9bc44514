"""The organizers' script, read again from what it does to a NIfTI file, and ours: the same for every stored order."""

import itertools
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from flaresemi.evaluation.summary import evaluate_folders
from flaresemi.labels import Label, LabelSet

TOLERANCES_MM = {"liver": 2.0, "aorta": 1.0}
LABELS = LabelSet(
    labels=tuple(
        Label(name=name, value=value, tolerance_mm=tolerance, z_range=name == "aorta")
        for value, (name, tolerance) in enumerate(TOLERANCES_MM.items(), start=1)
    )
)
SPACING_XYZ = (0.9, 1.3, 2.5)
ORDERS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    found = pytest.importorskip("surface_distance", exc_type=ImportError)
    for name, kind in (("bool", bool), ("int", int), ("float", float)):
        monkeypatch.setattr(np, name, kind, raising=False)  # the program is older than NumPy 2
    return found


def script(prediction: Path, reference: Path, program) -> dict[str, tuple[float, float]]:
    """DSC and NSD of every organ, line by line as https://github.com/JunMa11/FLARE computes them."""
    image = nibabel.load(reference)
    spacing = image.header.get_zooms()
    gt, seg = (np.uint8(nibabel.load(path).get_fdata()) for path in (reference, prediction))
    scores = {}
    for value, (name, tolerance) in enumerate(TOLERANCES_MM.items(), start=1):
        if name == "aorta":
            slices = np.where(gt == value)[2]
            lower, upper = np.min(slices), np.max(slices)
            organ_gt, organ_seg = gt[:, :, lower:upper] == value, seg[:, :, lower:upper] == value
        else:
            organ_gt, organ_seg = gt == value, seg == value
        dice = program.compute_dice_coefficient(organ_gt, organ_seg)
        nsd = 0.0
        if dice >= 0.2:
            distances = program.compute_surface_distances(organ_gt, organ_seg, spacing)
            nsd = program.compute_surface_dice_at_tolerance(distances, tolerance)
        scores[name] = round(dice, 4), round(nsd, 4)
    return scores


def masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A liver and an aorta that changes from slice to slice, and a prediction of them, on a grid (X, Y, Z)."""
    rng = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(rng.normal(size=(22, 20, 14)), (3, 3, 2)) for _ in range(2)]
    maps = []
    for noise in smooth:
        label = np.zeros(noise.shape, np.uint8)
        label[1:12, 2:17, 2:12] = smooth[0][1:12, 2:17, 2:12] + 0.4 * noise[1:12, 2:17, 2:12] > 0.02
        for z in range(1, 13):
            x, y = 14 + int(rng.integers(3)), 4 + int(rng.integers(4)) + z // 3
            label[x : x + 5, y : y + 5, z] = 2
        maps.append(label)
    maps[0][:, :, 11:] = np.where(maps[0][:, :, 11:] == 2, 0, maps[0][:, :, 11:])  # the prediction ends early
    return maps[0], maps[1]


def save(path: Path, array_xyz: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """Stores the same voxels in the same places with other axes."""
    directions = np.diag([-SPACING_XYZ[0], -SPACING_XYZ[1], SPACING_XYZ[2]])
    affine = np.eye(4)
    affine[:3, :3] = directions[:, order] * signs
    corner = np.zeros(3)
    steps = []
    for axis, sign in zip(order, signs, strict=True):
        corner[axis] = 0 if sign > 0 else array_xyz.shape[axis] - 1
        steps.append(slice(None, None, sign))
    affine[:3, 3] = directions @ corner
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array_xyz.transpose(order)[tuple(steps)]), affine), path)


@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_our_official_scores_are_the_scripts(tmp_path: Path, program, order: int) -> None:
    prediction, reference = masks(order)
    for name, array in (("p", prediction), ("r", reference)):
        save(tmp_path / name / "case.nii.gz", array, *ORDERS[order])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = script(tmp_path / "p" / "case.nii.gz", tmp_path / "r" / "case.nii.gz", program)
    summary = evaluate_folders(tmp_path / "p", tmp_path / "r", LABELS, official=True)
    found = {name: (score.dice, score.nsd) for name, score in summary.cases[0].organs.items()}
    assert found == {name: pytest.approx(scores, abs=1.01e-4) for name, scores in expected.items()}
    assert all(0.2 < dice < 1 for dice, _ in expected.values())
    assert summary.cautions == ()


def test_the_stored_order_decides_which_slice_is_left_out(tmp_path: Path) -> None:
    prediction, reference = masks(0)
    dice = set()
    for order in (((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (1, 1, -1)), ((2, 1, 0), (1, 1, 1))):
        for name, array in (("p", prediction), ("r", reference)):
            save(tmp_path / name / "case.nii.gz", array, *order)
        dice.add(evaluate_folders(tmp_path / "p", tmp_path / "r", LABELS, official=True).cases[0].organs["aorta"].dice)
    assert len(dice) == 3


def test_files_that_the_script_would_compare_wrongly_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prediction, reference = masks(1)
    for name in ("same", "turned"):
        save(tmp_path / "r" / f"{name}.nii.gz", reference, (0, 1, 2), (1, 1, 1))
    save(tmp_path / "p" / "same.nii.gz", prediction, (0, 1, 2), (1, 1, 1))
    save(tmp_path / "p" / "turned.nii.gz", prediction, (0, 1, 2), (1, 1, -1))
    (caution,) = evaluate_folders(tmp_path / "p", tmp_path / "r", LABELS, official=True).cautions
    assert caution.endswith("in different orders: turned")
    assert caution in caplog.text
    assert evaluate_folders(tmp_path / "p", tmp_path / "r", LABELS).cautions == ()
