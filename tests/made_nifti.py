"""NIfTI files with exactly the forms that a test wants, and label maps as other programs write them."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk


def write_nifti(
    path: Path,
    array_xyz: np.ndarray,
    sform: np.ndarray | None = None,
    qform: np.ndarray | None = None,
    *,
    codes: tuple[int, int] = (2, 1),
    unit: int = 2,
    kind: type = nibabel.Nifti1Image,
) -> Path:
    """Writes an array with these forms and no other; nibabel would add an sform where there is none.

    Args:
        path: Where to.
        array_xyz: The voxels.
        sform: 4×4, to RAS; None: code 0.
        qform: The same.
        codes: Of sform and qform where they stand.
        unit: The spatial part of xyzt_units.
        kind: NIfTI-1 or -2.
    """
    header = kind.header_class()
    header.set_data_shape(array_xyz.shape)
    header.set_data_dtype(array_xyz.dtype)
    header.set_sform(sform, 0 if sform is None else codes[0])
    header.set_qform(qform, 0 if qform is None else codes[1])
    sizes = qform if qform is not None else sform if sform is not None else np.diag([0.7, 0.8, 2.5, 1.0])
    header["pixdim"][1:4] = np.linalg.norm(sizes[:3, :3], axis=0)
    header["xyzt_units"] = unit
    start = len(header.binaryblock) + 4
    header["magic"], header["vox_offset"] = (b"n+1" if start == 352 else b"n+2\0\r\n\032\n"), start
    content = header.binaryblock + bytes(4) + array_xyz.tobytes("F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)
    return path


def as_nibabel_writes(path: Path, array_xyz: np.ndarray, image: Path) -> Path:
    """Writes a label map with the affine that nibabel reads of an image, and nothing else of its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array_xyz, nibabel.load(image).affine), path)
    return path


def as_simpleitk_writes(path: Path, array_xyz: np.ndarray, image: Path) -> Path:
    """Writes a label map on the grid that SimpleITK reads of an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = sitk.GetImageFromArray(np.ascontiguousarray(array_xyz.T))
    written.CopyInformation(sitk.ReadImage(str(image)))
    sitk.WriteImage(written, str(path))
    return path
