"""What only a CUDA device does: time by its own clock, passes recorded as graphs, its free memory."""

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: Of each recording that is held: the device, and bytes there that no other work can have.
_CLOSED: weakref.WeakKeyDictionary[torch.cuda.CUDAGraph, tuple[torch.device, int]] = weakref.WeakKeyDictionary()


class Card:
    """One CUDA device. All of its methods need that device; tests put something else in its place.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free_gib(self) -> float:
        """Its free memory, that which torch holds for later included, but for that of recordings."""
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        closed = sum(closed_bytes for device, closed_bytes in list(_CLOSED.values()) if device == self.device)
        return (free_bytes + held - closed) / 2**30

    def release(self) -> None:
        """Gives back memory that torch holds for later."""
        torch.cuda.empty_cache()

    def seconds(self, run: Callable[[], object]) -> float:
        """Seconds on the device from the first kernel of `run` to its last, gaps in which it waited included."""
        with torch.cuda.device(self.device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(self.device)
            start.record()
            run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000

    def recorded(self, run: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
        """The same as `run` for inputs of the example's shape and type: its kernels as one graph, replayed at once.

        Args:
            run: Always the same kernels for inputs of this shape, and no look at a value.
            example: An input.

        Returns:
            Gives a tensor of its own every time. It holds the memory that `run` needs.

        Raises:
            RuntimeError: `run` does what cannot be recorded, or memory is short.
        """
        with torch.cuda.device(self.device), torch.inference_mode():
            held, stream, graph = example.clone(), torch.cuda.Stream(self.device), torch.cuda.CUDAGraph()
            usual = torch.cuda.current_stream()
            stream.wait_stream(usual)
            with torch.cuda.stream(stream):
                run(held)  # libraries choose kernels and workspaces in the first one
                with no_waiting():  # found out here, for a recording that fails half way leaves torch in disorder
                    run(held)
            usual.wait_stream(stream)
            # Threads that read the next image meanwhile may allocate memory: that is no matter of this recording.
            # Where its end fails, torch would stay on the side stream but for the outer context.
            with torch.cuda.stream(usual), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                before = torch.cuda.memory_reserved(self.device)
                output = run(held)
                taken = torch.cuda.memory_reserved(self.device) - before
            _CLOSED[graph] = self.device, max(taken - output.nbytes, 0)  # the output is no free memory anyway

        def replay(windows: Tensor) -> Tensor:
            with torch.cuda.device(self.device):
                with torch.inference_mode():
                    held.copy_(windows)
                    graph.replay()
                return output.clone()  # the caller's own, who may change it

        return replay


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raises a RuntimeError where the GPU is waited for, in nearly all of the ways in which torch does."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns once of being a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
