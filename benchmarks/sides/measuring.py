"""What both sides of against_nnunet.py share, so that it is the same: memory, random patches, the report line."""

import json
import resource

import numpy as np


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def random_batch(task: dict) -> tuple[np.ndarray, np.ndarray]:
    """Noise and blocks of labels: float32 (B, 1, Z, Y, X) and int64 (B, Z, Y, X), the same for both sides."""
    rng = np.random.default_rng(0)
    shape = (task["batch"], *task["patch_zyx"])
    image = rng.standard_normal((shape[0], 1, *shape[1:]), np.float32)
    coarse = rng.integers(0, task["classes"], (shape[0], *(-(-size // 16) for size in shape[1:])))
    label = coarse.repeat(16, 1).repeat(16, 2).repeat(16, 3)[:, : shape[1], : shape[2], : shape[3]]
    return image, np.ascontiguousarray(label)


def report(result: dict, versions: dict[str, str]) -> None:
    """Prints the measurement as the last line of this process."""
    print(json.dumps({**result, "peak_rss_mib": peak_rss_mib(), "versions": versions}))
