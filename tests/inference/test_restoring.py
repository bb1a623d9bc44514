import pytest
import torch

from flaresemi.geometry import BoundingBox
from flaresemi.inference.restoring import _add
from flaresemi.preprocessing.winners import GrowingLabels


@pytest.mark.parametrize(("said", "is_mended"), [("CUDA error: out of memory", True), ("shapes do not match", False)])
def test_a_slab_that_a_gpu_has_no_memory_for_is_restored_in_main_memory(
    said: str, is_mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = BoundingBox.whole((4, 5, 6))
    labels, original, tries = GrowingLabels(whole, (4, 5, 6), (4, 5, 6), whole), GrowingLabels.add, []

    def full(self: GrowingLabels, planes_czyx: torch.Tensor) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError(said)
        original(self, planes_czyx)

    monkeypatch.setattr(GrowingLabels, "add", full)
    logits = torch.randn(3, 4, 5, 6)
    if not is_mended:
        with pytest.raises(RuntimeError, match=said):
            _add(labels, logits)
        return
    _add(labels, logits)
    assert (labels.indices_zyx == logits.argmax(dim=0).numpy()).all()
