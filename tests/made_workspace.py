"""Workspaces whose networks are so small that tests can train them."""

import json
from pathlib import Path

from flaresemi.cli import plan_and_preprocess


def plan_tiny(dataset: Path, workspace: Path, stages: str, *more: str) -> list[str]:
    """Prepares a dataset for tiny networks of `one` stage or `two`; returns the options that name both folders."""
    words = ["-d", str(dataset), "-w", str(workspace)]
    how = ["--preset", "small", "--stages", stages, "--workers", "1", "--quiet", *more]
    assert plan_and_preprocess.main([*words, *how]) == 0
    shrink(workspace)
    return words


def shrink(workspace: Path) -> None:
    """Replaces the networks of the plans by ones that take no time, on small patches."""
    path = workspace / "plans.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    for stage in ("fine", "coarse"):
        network = plans[stage]["network"]
        levels = min(3, len(network["features"]))
        for name in ("kernels", "strides"):
            network[name] = network[name][:levels]
        network |= {"features": [4, 8, 8][:levels], "decoder_convs": [1] * (levels - 1), "encoder_convs": [1] * levels}
        plans[stage]["patch_zyx"] = [32, 32, 32]
    path.write_text(json.dumps(plans), encoding="utf-8")
