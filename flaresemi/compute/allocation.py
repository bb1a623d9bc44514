"""How the C library hands out memory."""

import ctypes
import logging

from flaresemi.portability import HAS_GLIBC

logger = logging.getLogger(__name__)

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Lets this process keep the memory of freed tensors for the next ones, instead of giving it back to the system.

    glibc maps every block above 32 MiB anew and unmaps it when it is freed. A training step on a CPU does that with
    each of its large activations, and each page of them then faults and is cleared again. With kept memory the median
    step was 10 to 24 % faster, though not in every comparison (benchmarks/results/network_step.md). For loops that need
    the same sizes again and again; the process stays at its peak.

    Returns:
        Whether it took effect: True with glibc only.
    """
    if not HAS_GLIBC:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    done = bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
    logger.debug("freed memory is %s", "kept" if done else "given back")
    return done
