"""Images: any orientation in, exactly the same grid out, and nothing broken taken for whole."""

import builtins
import itertools
import logging
import math
import resource
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from flaresemi.errors import ImageError
from flaresemi.files import content_hash
from flaresemi.geometry import Geometry
from flaresemi.io.grids import SourceGrid
from flaresemi.io.image_file import content_of, files_of
from flaresemi.io.images import read_grid, read_image, read_label_map, write_label_map

FORMATS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd")


def rotation(generator: np.random.Generator, degrees: float) -> np.ndarray:
    """A rotation about a random axis."""
    axis = generator.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def write_reference(
    path: Path, array_zyx: np.ndarray, spacing_xyz=(1.0, 1.5, 2.0), origin=(3.0, -4.0, 5.5), direction=None
) -> None:
    image = sitk.GetImageFromArray(array_zyx)
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(origin)
    image.SetDirection(tuple(np.ravel(np.eye(3) if direction is None else direction)))
    sitk.WriteImage(image, str(path), path.suffix != ".nii")


def turned(
    array_zyx: np.ndarray, geometry: Geometry, axes: tuple, flips: tuple
) -> tuple[np.ndarray, np.ndarray, tuple, tuple]:
    """The same voxels in the same places of the patient, stored in another order: array, direction, spacing, origin."""
    source = SourceGrid(geometry=geometry, axes=axes, flips=flips)
    canonical = source.canonical
    return (
        np.ascontiguousarray(source.to_canonical(array_zyx)),
        np.reshape(canonical.direction, (3, 3)),
        canonical.spacing_zyx_mm[::-1],
        canonical.origin_xyz_mm,
    )


@pytest.mark.parametrize("degrees", [20.0, 45.0])
def test_48_orders_of_one_volume_are_one_canonical_image(tmp_path, degrees):
    generator = np.random.default_rng(1)
    array = generator.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    # 45 degrees about z is a tie between the x and the y axis: the choice must not depend on the order in the file.
    about_z = np.array(
        [[math.cos(a := math.radians(degrees)), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]
    )
    geometry = Geometry(
        shape_zyx=(4, 5, 6),
        spacing_zyx_mm=(2.0, 1.5, 1.0),
        origin_xyz_mm=(1.0, 2.0, 3.0),
        direction=tuple(about_z.ravel()),
    )
    images = []
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            stored, direction, spacing, origin = turned(array, geometry, axes, flips)
            path = tmp_path / "image.nrrd"
            write_reference(path, stored, spacing, origin, direction)
            images.append(read_image([path]))
    first = images[0]
    for image in images:
        np.testing.assert_array_equal(image.array_czyx, first.array_czyx)
        assert image.geometry.far_corner_distance_mm(first.geometry) < 1e-6
    turned_by = np.reshape(first.geometry.direction, (3, 3))
    assert np.trace(turned_by) >= np.trace(about_z) - 1e-9


def test_canonical_is_closest_to_identity(tmp_path):
    generator = np.random.default_rng(2)
    for _ in range(20):
        direction = rotation(generator, generator.uniform(0, 180))
        write_reference(tmp_path / "a.nrrd", np.zeros((3, 4, 5), np.uint8), direction=direction)
        canonical = np.reshape(read_grid(tmp_path / "a.nrrd").canonical.direction, (3, 3))
        for order in itertools.permutations(range(3)):
            for signs in itertools.product((1, -1), repeat=3):
                assert np.trace(canonical) >= np.trace(canonical[:, order] * signs) - 1e-6


def test_canonical_voxels_stay_where_they_are_in_the_patient(tmp_path):
    generator = np.random.default_rng(3)
    array = generator.integers(0, 30000, (4, 5, 6)).astype(np.int16)
    for _ in range(10):
        direction = rotation(generator, generator.uniform(0, 180))
        write_reference(tmp_path / "a.mha", array, direction=direction)
        reference = sitk.ReadImage(str(tmp_path / "a.mha"))
        image = read_image([tmp_path / "a.mha"])
        for index in [(0, 0, 0), tuple(size - 1 for size in image.geometry.shape_zyx), (1, 2, 1)]:
            world = image.geometry.world_xyz_mm(index)
            x, y, z = reference.TransformPhysicalPointToIndex(world)
            assert image.array_czyx[(0, *index)] == array[z, y, x]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("source_ending", [".nii.gz", ".mha", ".nrrd"])
def test_label_map_goes_back_onto_the_input_grid(tmp_path, ending, source_ending):
    generator = np.random.default_rng(4)
    for index in range(4):
        source_path = tmp_path / f"image{source_ending}"
        array = generator.integers(0, 99, (5, 6, 7)).astype(np.int16)
        spacing, origin = generator.uniform(0.3, 5, 3), generator.uniform(-500, 500, 3)
        direction = rotation(generator, (0.0, 16.0, 90.0, 170.0)[index])
        write_reference(source_path, array, spacing.tolist(), origin.tolist(), direction)
        source = read_grid(source_path)
        values = generator.integers(0, 14, source.canonical.shape_zyx).astype(np.uint8)
        path = tmp_path / "sub folder" / f"Ergebnis ä 結果{ending}"
        write_label_map(path, values, source)
        np.testing.assert_array_equal(read_label_map(path).array_zyx, values)

        reference, written = sitk.ReadImage(str(source_path)), sitk.ReadImage(str(path))
        assert written.GetSize() == reference.GetSize()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), np.ascontiguousarray(source.to_file(values)))
        # NIfTI stores the affine as 32-bit floats; the others store digits.
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if ".nii" in ending else {"rtol": 1e-12, "atol": 1e-9}
        np.testing.assert_allclose(written.GetSpacing(), reference.GetSpacing(), **tolerance)
        np.testing.assert_allclose(written.GetOrigin(), reference.GetOrigin(), **tolerance)
        np.testing.assert_allclose(written.GetDirection(), reference.GetDirection(), **tolerance)
        assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left in the folder"
        path.unlink()


@pytest.mark.parametrize(("ending", "beside"), [(".mhd", ".raw"), (".mha", None), (".nrrd", None), (".nii.gz", None)])
def test_the_files_of_an_image(tmp_path, ending, beside):
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6), np.uint8)), str(path))
    assert files_of(path) == ((path,) if beside is None else (path, tmp_path / f"a{beside}"))
    assert (content_of(path) == content_hash(path)) == (beside is None), "of a file alone, the hash is the file's"
    files_of(path)[-1].unlink()
    assert files_of(path) == (path,), "reading it says why"


def test_the_voxels_of_an_nrrd_header_are_a_file_of_it(tmp_path):
    path, voxels = tmp_path / "a.nrrd", tmp_path / "below" / "a.bin"
    voxels.parent.mkdir()
    voxels.write_bytes(bytes(8))
    path.write_text("NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: below/a.bin\n")
    assert files_of(path) == (path, voxels)
    before = content_of(path)
    voxels.write_bytes(bytes(7) + b"\1")
    assert content_of(path) != before
    path.write_text("no header")
    assert files_of(path) == (path,)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, bool])
def test_label_values_survive(tmp_path, dtype):
    source = grid()
    low, high = (0, 1) if dtype is bool else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.full(source.canonical.shape_zyx, low, dtype)
    values[1, 1] = high
    for ending in FORMATS:
        write_label_map(tmp_path / f"label{ending}", values, source)
        found = read_label_map(tmp_path / f"label{ending}").array_zyx
        assert found.dtype.kind in "iu"
        np.testing.assert_array_equal(found, values)


def test_very_long_names(tmp_path):
    path = tmp_path / ("例" * 80 + ".nii.gz")
    values = np.zeros(grid().canonical.shape_zyx, np.uint8)
    write_label_map(path, values, grid())
    np.testing.assert_array_equal(read_label_map(path).array_zyx, values)


def test_float_label_maps(tmp_path):
    array = np.zeros((3, 4, 5), np.float32)
    array[1] = 300
    write_reference(tmp_path / "whole.nii.gz", array)
    found = read_label_map(tmp_path / "whole.nii.gz").array_zyx
    assert found.dtype == np.int16 and set(np.unique(found)) == {0, 300}

    array[2, 2, 2] = 1.5
    write_reference(tmp_path / "broken.nii.gz", array)
    with pytest.raises(ImageError, match=r"must be integers, found 1\.5"):
        read_label_map(tmp_path / "broken.nii.gz")
    for value in (np.nan, np.inf, 1e30):
        array[2, 2, 2] = value
        write_reference(tmp_path / "bad.nii.gz", array)
        with pytest.raises(ImageError, match=r"NaN or infinite|do not fit"):
            read_label_map(tmp_path / "bad.nii.gz")


def test_scaled_voxels(tmp_path):
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(stored, np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with_scaling = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj).T
    np.testing.assert_array_equal(read_image([tmp_path / "a.nii.gz"]).array_czyx[0], with_scaling)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii.gz").array_zyx, with_scaling)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_unusable_voxels_are_counted_and_take_the_lowest_value(tmp_path, caplog, ending):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5) - 7
    array[0, 0, :5] = [np.nan, np.inf, -np.inf, 3e38, -2e30]
    write_reference(tmp_path / f"a{ending}", array)
    with caplog.at_level(logging.WARNING):
        image = read_image([tmp_path / f"a{ending}"])
    assert image.non_finite == 5
    np.testing.assert_array_equal(image.array_czyx[0, 0, :2].ravel()[:7], [-2, -2, -2, -2, -2, -2, -1])
    assert "5 voxels are NaN or infinite" in caplog.text

    write_reference(tmp_path / f"b{ending}", np.full((3, 4, 5), np.nan, np.float32))
    with pytest.raises(ImageError, match="no finite voxel"):
        read_image([tmp_path / f"b{ending}"])


def test_a_path_that_is_no_text_is_refused_before_the_library_sees_it(tmp_path):
    array = np.zeros((3, 4, 5), np.uint8)
    for ending in (".nii.gz", ".mha", ".nrrd"):
        write_reference(tmp_path / f"a{ending}", array)
        odd = tmp_path / f"a\udcff{ending}"
        (tmp_path / f"a{ending}").rename(odd)
        for read in (read_label_map, read_grid, lambda path: read_image([path])):
            with pytest.raises(ImageError, match="bytes that are no UTF-8"):
                read(odd)
        with pytest.raises(ImageError, match="bytes that are no UTF-8"):
            write_label_map(tmp_path / f"b\udcff{ending}", array, read_grid(_copied(odd, tmp_path / f"c{ending}")))


def _copied(path, to):
    to.write_bytes(path.read_bytes())
    return to


def test_channels_must_share_a_grid(tmp_path):
    array = np.zeros((3, 4, 5), np.int16)
    first, second, third, fourth = (tmp_path / f"{name}.nii.gz" for name in "abcd")
    write_reference(first, array)
    write_reference(second, array + 1)
    write_reference(third, array, origin=(3.0, -4.0, 6.0))
    write_reference(fourth, array[:2])
    assert read_image([first, second]).array_czyx[:, 0, 0, 0].tolist() == [0, 1]
    with pytest.raises(ImageError, match=r"corners 0\.5 mm apart"):
        read_image([first, third])
    with pytest.raises(ImageError, match="voxels"):
        read_image([first, fourth])


def sheared(path: Path, degrees: float, *, with_qform: bool) -> None:
    affine = np.eye(4)
    affine[1, 2] = math.tan(math.radians(degrees))
    affine[:3, :3] = rotation(np.random.default_rng(5), 20) @ affine[:3, :3] @ np.diag([1, 2, 3])
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine if with_qform else None, 1 if with_qform else 0)
    nibabel.save(image, path)


@pytest.mark.parametrize("with_qform", [False, True])
def test_shear_is_refused_and_rounding_is_not(tmp_path, with_qform, caplog):
    path = tmp_path / "a.nii.gz"
    for degrees in (0.0, 0.001, 0.1, 0.45):
        sheared(path, degrees, with_qform=with_qform)
        direction = np.reshape(read_grid(path).geometry.direction, (3, 3))
        np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-4)
        write_label_map(tmp_path / "out.nii.gz", np.zeros((6, 5, 4), np.uint8), read_grid(path))
        assert read_grid(tmp_path / "out.nii.gz").geometry.far_corner_distance_mm(read_grid(path).geometry) < 1e-3
    assert with_qform or "not quite perpendicular" in caplog.text
    for degrees in (0.6, 15.0):
        sheared(path, degrees, with_qform=with_qform)
        with pytest.raises(ImageError, match="sheared"):
            read_grid(path)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_degenerate_directions_are_refused(tmp_path, value):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    raw = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    header["sform_code"] = 1
    header["srow_y"] = value
    raw[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(raw)
    with pytest.raises(ImageError, match="axes make no sense"):
        read_grid(tmp_path / "a.nii")

    write_reference(tmp_path / "a.mha", np.zeros((3, 4, 5), np.uint8))
    text = (tmp_path / "a.mha").read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 0 0 0 0 0 0")
    (tmp_path / "a.mha").write_bytes(text)
    with pytest.raises(ImageError):
        read_grid(tmp_path / "a.mha")


def test_other_kinds_of_images_are_named(tmp_path):
    affine = np.eye(4)
    for name, array, expected in [
        ("four", np.zeros((4, 5, 6, 2), np.int16), "4D image of 4x5x6x2"),
        ("flat", np.zeros((4, 5), np.int16), "2D"),
        ("complex", np.zeros((4, 5, 6), np.complex64), "complex"),
        ("rgb", np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])), "RGB"),
    ]:
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
        with pytest.raises(ImageError, match=expected):
            read_grid(tmp_path / f"{name}.nii.gz")
    vector = sitk.GetImageFromArray(np.zeros((3, 4, 5, 3), np.float32), isVector=True)
    four = sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False)
    for ending in (".mha", ".nrrd"):
        sitk.WriteImage(vector, str(tmp_path / f"v{ending}"))
        with pytest.raises(ImageError, match="one number per voxel, found vector"):
            read_image([tmp_path / f"v{ending}"])
        sitk.WriteImage(four, str(tmp_path / f"f{ending}"))
        with pytest.raises(ImageError, match="found 4D of 5x4x3x2"):
            read_image([tmp_path / f"f{ending}"])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_versions_byte_orders_and_trailing_axes(tmp_path, kind):
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6, 1)
    for order in "<>":
        header = (nibabel.Nifti1Header if kind is nibabel.Nifti1Image else nibabel.Nifti2Header)(endianness=order)
        image = kind(array.astype(np.dtype(np.int16).newbyteorder(order)), np.diag([-2.0, -1.0, 3.0, 1.0]), header)
        nibabel.save(image, tmp_path / "a.nii.gz")
        found = read_image([tmp_path / "a.nii.gz"])
        np.testing.assert_array_equal(found.array_czyx[0], array[..., 0].T)
        np.testing.assert_allclose(found.geometry.spacing_zyx_mm, (3.0, 1.0, 2.0))


def grid() -> SourceGrid:
    geometry = Geometry(shape_zyx=(6, 5, 4), spacing_zyx_mm=(3.0, 2.0, 1.0))
    return SourceGrid(geometry=geometry, axes=(0, 1, 2), flips=(False, False, False))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(tmp_path, ending):
    geometry = Geometry(shape_zyx=(64, 64, 64), spacing_zyx_mm=(1.0, 1.0, 1.0))
    source = SourceGrid(geometry=geometry, axes=(0, 1, 2), flips=(False, False, False))
    path = tmp_path / f"label{ending}"
    old = np.zeros((64, 64, 64), np.uint8)
    write_label_map(path, old, source)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 64)).astype(np.uint8)
    # A limit on file size breaks writers off in the middle, as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError):
            write_label_map(path, noise, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    np.testing.assert_array_equal(read_label_map(path).array_zyx, old)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_wrong_use_of_write_label_map(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        write_label_map(tmp_path / "a.nii.gz", np.zeros((1, 2, 3), np.uint8), grid())
    with pytest.raises(ValueError, match="integers"):
        write_label_map(tmp_path / "a.nii.gz", np.zeros((6, 5, 4), np.float32), grid())
    with pytest.raises(ImageError, match="not an image file by its name"):
        write_label_map(tmp_path / "a.png", np.zeros((6, 5, 4), np.uint8), grid())
    with pytest.raises(ImageError, match="not found"):
        read_image([tmp_path / "nothing.nii.gz"])


# Real files ----------------------------------------------------------------------------------------------------------


def test_real_48_orientations(shared_data):
    paths = sorted((shared_data / "robustness" / "niivue_orientations48").glob("*.nii.gz"))
    assert len(paths) == 48
    first = read_image(paths[:1])
    for path in paths[1:]:
        image = read_image([path])
        np.testing.assert_array_equal(image.array_czyx, first.array_czyx)
        assert image.geometry.far_corner_distance_mm(first.geometry) < 1e-3


def test_real_broken_files_are_named(shared_data):
    paths = sorted((shared_data / "robustness" / "broken").glob("*"))
    assert len(paths) == 5
    for path in paths:
        for read in (lambda p: read_image([p]), read_label_map):
            with pytest.raises(ImageError) as caught:
                read(path)
            assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("niivue_odd/shear.nii.gz", "sheared"),
        ("niivue_odd/complex.nii.gz", "complex"),
        ("niivue_odd/ct_perfusion.nii.gz", "RGB"),
        ("nibabel_odd/example4d.nii.gz", "4D"),
        ("nibabel_odd/example_nifti2.nii.gz", "4D"),
        ("nibabel_odd/functional.nii", "4D"),
    ],
)
def test_real_files_that_are_refused(shared_data, name, expected):
    with pytest.raises(ImageError, match=expected):
        read_image([shared_data / "robustness" / name])


@pytest.mark.parametrize(
    "name",
    [
        "niivue_odd/CT_pitch.nii.gz",
        "niivue_odd/minimal.nii.gz",
        "niivue_odd/low_res.nii.gz",
        "nibabel_odd/anatomical.nii",
        "nibabel_odd/reoriented_anat_moved.nii",
        "nibabel_odd/standard.nii.gz",
        "elastix_lung_small/3DCT_lung_baseline_small.mha",
        "dcmqi_ct3slice/liver_spine_seg.nrrd",
    ],
)
def test_real_odd_files_are_read_as_simpleitk_reads_them_and_go_round(shared_data, tmp_path, name):
    path = shared_data / "robustness" / name
    image, reference = read_image([path]), sitk.ReadImage(str(path))
    ours = image.source.to_file(image.array_czyx[0])
    theirs = sitk.GetArrayFromImage(reference)
    finite = np.isfinite(theirs)
    np.testing.assert_allclose(ours[finite], theirs[finite], rtol=1e-6)
    label = (image.array_czyx[0] > image.array_czyx.mean()).astype(np.uint8)
    write_label_map(tmp_path / "out.nii.gz", label, image.source)
    written = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    assert written.GetSize() == reference.GetSize()
    np.testing.assert_allclose(written.GetSpacing(), reference.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), reference.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(written.GetDirection(), reference.GetDirection(), atol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("quatern_b", 5.0), ("pixdim", -1.0)])
def test_a_qform_that_makes_no_sense_counts_as_none(tmp_path, field, value):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([-1.0, -1.0, 2.0, 1.0]))
    image.set_qform(image.affine, 1)
    raw = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    header[field] = value
    raw[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(raw)
    assert read_grid(tmp_path / "a.nii").geometry.shape_zyx == (6, 5, 4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3e38])
def test_an_affine_that_is_no_number_is_refused_and_nothing_else(tmp_path, number):
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 5, 6))
    header.set_data_dtype(np.int16)
    header["sform_code"], header["qform_code"] = 1, 1
    header["srow_x"], header["srow_y"], header["srow_z"] = [number, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]
    header["pixdim"][1:4] = number
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4 + 240))
    with pytest.raises(ImageError, match="make no sense"):
        read_grid(tmp_path / "a.nii")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spacing", ["1e200 1 1", "1 1e7 1"])
def test_voxels_larger_than_any_body_are_refused(tmp_path, spacing):
    lines = ("ObjectType = Image", "NDims = 3", "BinaryData = True", f"ElementSpacing = {spacing}", "DimSize = 5 4 3",
             "ElementType = MET_SHORT", "ElementDataFile = LOCAL\n")  # fmt: skip
    (tmp_path / "a.mha").write_bytes("\n".join(lines).encode() + bytes(120))
    with pytest.raises(ImageError, match="make no sense"):
        read_grid(tmp_path / "a.mha")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_a_file_is_opened_once_and_never_by_the_library(tmp_path, monkeypatch, ending):
    path = tmp_path / f"a{ending}"
    write_reference(path, np.zeros((3, 4, 5), np.uint8))
    opened, really_open = [], builtins.open
    monkeypatch.setattr(
        "builtins.open", lambda file, *args, **more: opened.append(file) or really_open(file, *args, **more)
    )
    named, name = [], sitk.ImageFileReader.SetFileName
    monkeypatch.setattr(
        sitk.ImageFileReader, "SetFileName", lambda reader, file: named.append(file) or name(reader, file)
    )
    for read in (read_grid, read_label_map, lambda path: read_image([path])):
        opened.clear()
        read(path)
        ours = [each for each in opened if not isinstance(each, int) and tmp_path in Path(each).parents]
        assert ours == [path]
    assert str(path) not in named


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_any_name_can_be_written_that_of_what_is_unfinished_too(tmp_path, ending):
    grid = SourceGrid.of(Geometry(shape_zyx=(2, 3, 4), spacing_zyx_mm=(1.0, 1.0, 1.0)))
    write_label_map(tmp_path / f"whole{ending}", np.ones((2, 3, 4), np.uint8), grid)
    assert [path.name for path in tmp_path.iterdir()] == [f"whole{ending}"]
    assert read_label_map(tmp_path / f"whole{ending}").array_zyx.all()
