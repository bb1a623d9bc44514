"""What validation says of the regions that COARSE finds."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flaresemi.geometry import BoundingBox, Geometry
from flaresemi.training.task import TrainingTask
from flaresemi.training.validation import CaseResult, _recall, _recall_text

REFERENCE = np.zeros((10, 10, 10), np.uint8)
REFERENCE[2:4, 2:4, 2:4] = 1
REFERENCE[2:4, 2:4, 6:8] = 2
REGION = BoundingBox(start=(2, 2, 2), stop=(4, 4, 5))  # grown by 4 mm, two voxels: half of the second organ


def recall(task: TrainingTask, reference: np.ndarray, found: BoundingBox | None) -> Any:
    image: Any = SimpleNamespace(geometry=Geometry(shape_zyx=(10, 10, 10), spacing_zyx_mm=(2.0, 2.0, 2.0)))
    segmenter: Any = SimpleNamespace(find_organs=lambda _: found)
    return _recall(segmenter, image, reference, task)


@pytest.mark.parametrize("lost", range(3))
def test_cases_without_a_region_are_told_apart(make_task: Callable[..., TrainingTask], lost: int) -> None:
    """A COARSE that finds nothing has no recall: 1.0 would call it perfect."""
    task = make_task()
    results = {
        f"case_{number}": CaseResult(
            largest_component_gain={}, recall=recall(task, REFERENCE, None if number < lost else REGION)
        )
        for number in range(2)
    }
    results["empty"] = CaseResult(largest_component_gain={}, recall=recall(task, np.zeros_like(REFERENCE), None))
    said = _recall_text(results)
    assert said.startswith("recall of the region: ")
    assert ("mean 0.7500, worst 0.5000 (right ball in case_" in said) == (lost < 2)
    assert (f"no region found in {lost} of 2 cases, where FINE would search all: case_0" in said) == (lost > 0)
    assert "1.0" not in said


def test_without_any_organ_there_is_nothing_to_recall(make_task: Callable[..., TrainingTask]) -> None:
    empty = CaseResult(largest_component_gain={}, recall=recall(make_task(), np.zeros_like(REFERENCE), None))
    assert _recall_text({"case_2": empty}) == "no organ to recall"
