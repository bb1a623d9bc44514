from collections.abc import Callable

import pytest
import torch

from flaresemi.compute.precision import Precision
from flaresemi.training import monitoring
from flaresemi.training.config import TrainingConfig
from flaresemi.training.monitoring import quick_validation
from flaresemi.training.task import TrainingTask
from flaresemi.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "is_mended"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_a_lack_of_gpu_memory_does_not_end_a_training_in_its_validation(
    error: RuntimeError,
    is_mended: bool,
    make_task: Callable[..., TrainingTask],
    quick_config: TrainingConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, original, tries = make_task(), monitoring.slide_in_slabs, []
    network = Trainer(task, quick_config, device=CPU).network.eval()

    def dice() -> dict[str, float]:
        return quick_validation(network, task.store, ("case_2",), task.plan, task.labels, CPU, Precision(CPU, "fp32"))

    def full(image: torch.Tensor, *arguments: object, **named: object) -> object:
        tries.append(image.device)
        if len(tries) == 1:
            raise error
        return original(image, *arguments, **named)  # type: ignore[arg-type]

    network.deep_supervision = False
    expected = dice()
    monkeypatch.setattr(monitoring, "slide_in_slabs", full)
    if not is_mended:
        with pytest.raises(RuntimeError, match="shapes"):
            dice()
        return
    assert dice() == expected
    assert tries == [CPU, CPU]
