"""A synthetic CT with its label map."""

import dataclasses

import numpy as np

from flaresemi.geometry import Geometry, IntTriple
from flaresemi.io.grids import SourceGrid
from flaresemi.phantom import surroundings, torso
from flaresemi.phantom.organs import organs
from flaresemi.phantom.patient import Patient, Structure
from flaresemi.phantom.rendering import Renderer
from flaresemi.phantom.scanner import Scan, in_file_order
from flaresemi.phantom.torso import Torso


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phantom:
    """A synthetic abdominal CT.

    Attributes:
        image_hu: int16 (Z, Y, X) in canonical orientation.
        label: uint8 (Z, Y, X), FLARE22's values.
        source: The canonical grid and the order in which a file holds it.
        phase: Phase of the contrast injection: none, arterial, portal or delayed.
        missing: Names of organs that the patient does not have. Others may still lie outside the field.
    """

    image_hu: np.ndarray
    label: np.ndarray
    source: SourceGrid
    phase: str
    missing: frozenset[str]

    @property
    def geometry(self) -> Geometry:
        """The canonical grid."""
        return self.source.canonical


def make_phantom(seed: int, *, shape_zyx: IntTriple, vary: bool = True, geometry: Geometry | None = None) -> Phantom:
    """Draws a patient and scans it.

    The patient depends on `seed` alone: at another shape or on another grid it is the same anatomy, up to the voxels.

    Args:
        seed: Of everything; the same seed and shape give the same arrays.
        shape_zyx: Voxels. The spacing follows from the field of view that is drawn, so that any shape holds the body.
        vary: False for an upright, whole field in LPS order and a patient with all organs: for tests that need them.
        geometry: Scan on this canonical grid instead of a drawn one; its shape must be `shape_zyx`.
    """
    if geometry is not None and geometry.shape_zyx != shape_zyx:
        raise ValueError(f"geometry of shape {geometry.shape_zyx} for a phantom of shape {shape_zyx}")
    patient = Patient.draw(seed, vary=vary)
    frame = Torso.draw(patient)
    scan = Scan.draw(patient, frame, shape_zyx, vary=vary)
    if geometry is not None:
        scan = dataclasses.replace(scan, source=in_file_order(geometry, (0, 1, 2), (False, False, False)))
    renderer = Renderer(scan.source.canonical, patient, scan.sharpness_mm)
    image, label = renderer.render(_structures(patient, frame), patient.hu["air"])
    scan.expose(image, patient)
    return Phantom(image_hu=image, label=label, source=scan.source, phase=patient.phase, missing=patient.missing)


def _structures(patient: Patient, frame: Torso) -> list[Structure]:
    """Everything to paint, in order: what comes later lies over what came before."""
    optional = [torso.table(patient, frame), torso.blanket(patient, frame)]
    return [
        *(structure for structure in optional if structure is not None),
        torso.backdrop(patient, frame),
        surroundings.bladder(patient),
        *surroundings.bowel(patient, frame),
        surroundings.heart(patient, frame),
        *surroundings.muscles(patient),
        *organs(patient, frame),
        *surroundings.liver_inside(patient, frame),
        *surroundings.vessels(patient),
        torso.spine(patient),
    ]
