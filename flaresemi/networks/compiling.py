"""torch.compile where it works, and the network as it is where it does not."""

import logging
from typing import cast

import torch
from torch import Tensor, nn

from flaresemi.compute.precision import Precision
from flaresemi.files import passing_folder

logger = logging.getLogger(__name__)


def load_compiler() -> None:
    """Imports torch's compiler, as its optimizers do, but without the folder for compiled code that this leaves.

    What is compiled later, where that is asked for, goes to the usual place among temporary files.
    """
    with passing_folder("TORCHINDUCTOR_CACHE_DIR"):
        import torch._dynamo  # noqa: F401


def compiled(network: nn.Module, example_bczyx: Tensor, precision: Precision, backend: str = "inductor") -> nn.Module:
    """The network behind torch.compile; the network itself, with a warning, when it cannot be compiled here.

    torch compiles at the first use, and fails there. Therefore a step on the example is tried at once, forward and
    backward, which leaves no trace in the network. The network keeps its parameters and their names: it is what is
    saved.

    Args:
        network: On its device.
        example_bczyx: As large as all that follow; another size would be compiled again.
        precision: Of the network's computation.
        backend: Of torch.compile.
    """
    compiled_network = cast(nn.Module, torch.compile(network, backend=backend))
    try:
        with precision.autocast():
            outputs = compiled_network(example_bczyx)
        levels = outputs if isinstance(outputs, list) else [outputs]
        torch.autograd.backward([level.float().sum() for level in levels])
    except (RuntimeError, ImportError, OSError) as problem:  # no compiler, a wrong one, no Triton, an operation unknown
        text = str(getattr(problem, "inner_exception", problem))  # torch wraps what the compiler said
        reason = next((line for line in text.splitlines() if line.strip()), type(problem).__name__)
        logger.warning("the network cannot be compiled on this machine and runs as it is: %s", reason.strip())
        torch.compiler.reset()
        return network
    finally:
        network.zero_grad(set_to_none=True)
    return compiled_network
