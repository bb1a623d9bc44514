"""What FLARE22 would cost: plans and estimates for 50 labeled and 2000 unlabeled CTs, from an assumed typical case.

No scan is read: the planner and the estimates are asked about a fingerprint whose 50 cases are all the assumed one. On
the data themselves `flaresemi_plan_and_preprocess` prints the same from their headers. What the whole chain of five
rounds takes is simulated step by step, from times that other benchmarks have measured where there are any; each figure
says whether it was measured, follows from a measured one, or is assumed.

    python benchmarks/flare22_estimate.py        writes results/flare22_estimate.md
"""

import dataclasses
import math
from pathlib import Path

from flaresemi import flare22
from flaresemi.geometry import BoundingBox, Geometry
from flaresemi.io.stored_case import MAX_CLASS_VOXELS
from flaresemi.networks.cost import forward_gflop
from flaresemi.planning.estimates import Estimate, estimate
from flaresemi.planning.planner import make_plans
from flaresemi.plans import CaseFingerprint, DatasetFingerprint, IntensityStatistics, Plans, Stage

RESULT = Path(__file__).resolve().parent / "results" / "flare22_estimate.md"

#: The assumed case: an abdomen of 100 slices, the patient in 60 % of the field, the organs in most of the patient.
SHAPE, SPACING = (100, 512, 512), (2.5, 0.8, 0.8)
BODY = BoundingBox(start=(0, 80, 40), stop=(100, 430, 490))
ORGANS = BoundingBox(start=(8, 110, 80), stop=(92, 370, 450))
LABELED, UNLABELED = 50, 2000

#: 10¹² operations a second that a device is assumed to sustain in convolutions under bf16, by the GPU memory it has.
DEVICES = {"small": ("a GPU of 4 GiB", 10.0), "base": ("a GPU of 12 GiB", 20.0), "large": ("a GPU of 32 GiB", 40.0)}

ITERATIONS = 250_000

FOLDS, ROUNDS = 5, 5
#: Models that label a case: the weights, and two snapshots whose agreement with them is its score.
LABELERS = 3


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number, and where it comes from."""

    value: float
    mark: str
    source: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a step of the chain takes.

    Attributes:
        preset: Its plans.
        gpus: How many chains it runs at a time.
        cores: That prepare.
        steps: Seconds of a training step, COARSE and FINE.
        label: Seconds to label and score a case.
        validate: Seconds to validate a held-out case on both stages.
        prepare: Processor seconds to look into a scan and prepare it.
        for_one: What a single chain gains from all GPUs.
    """

    name: str
    preset: str
    gpus: int
    cores: int
    steps: tuple[Figure, Figure]
    label: Figure
    validate: Figure
    prepare: Figure
    for_one: Figure = Figure(1.0, "", "")


def machines() -> list[Machine]:
    """The machines, with the figures that there are."""
    plans, cost = ask("base")
    fine, small = plans.fine, ask("small")[1]
    windows = cost.fine.prediction_tflop * 1000 / forward_gflop(fine.network, fine.patch_zyx)
    network = LABELERS * windows * 0.0155
    h100 = Machine(
        name="one H100",
        preset="base",
        gpus=1,
        cores=16,
        steps=(
            Figure(0.030, "measured", "networks that small, 19 to 32 ms on an H200 whatever their size: gpu_step.md"),
            Figure(0.069, "measured", "an H200, the same processor with faster memory: gpu_step.md"),
        ),
        label=Figure(
            network + 3.0,
            "derived",
            f"{LABELERS} models × {windows:.0f} windows × 15.5 ms (gpu_step.md) = {network:.1f} s; 3 s to read, score "
            "and write are assumed",
        ),
        validate=Figure(10.0, "assumed", ""),
        prepare=Figure(2.4, "measured", "238 s of processor time for 100 scans of 512×512×100: reading.md"),
    )
    four = dataclasses.replace(
        h100,
        name="four H100",
        gpus=4,
        cores=64,
        for_one=Figure(1.8, "assumed", "one chain uses two of the GPUs: the batch is 2"),
    )
    speed = 0.185
    laptop = Machine(
        name="a laptop, 2 cores",
        preset="small",
        gpus=1,
        cores=2,
        steps=tuple(  # type: ignore[arg-type]
            Figure(
                stage.training_step_tflop / speed,
                "derived",
                f"{stage.training_step_tflop:.2g} TFLOP at {1000 * speed:.0f} GFLOP/s in fp32, measured of such a "
                "network: network_step.md",
            )
            for stage in (small.coarse, small.fine)
        ),
        label=Figure(
            LABELERS * 4.8 + 1.5,
            "derived",
            "three times FINE's 4.8 s, 1.5 s for the rest, of 100 slices: prediction.md",
        ),
        validate=Figure(13.0, "derived", "10.3 s to predict (prediction.md), 3 s to score"),
        prepare=h100.prepare,
    )
    return [h100, four, laptop]


def hours(machine: Machine, chains: int, iterations: int) -> dict[str, float]:
    """Hours of the parts of a whole run, one part after the other."""
    waves = math.ceil(chains / machine.gpus)
    gain = machine.for_one.value if chains == 1 else 1.0
    training = sum(step.value for step in machine.steps) * iterations / 3600 / gain
    held_out = LABELED / FOLDS * machine.validate.value / 3600 / gain
    labeling = UNLABELED * machine.label.value / 3600 / gain
    parts = {
        "prepare": (LABELED + UNLABELED) * machine.prepare.value / machine.cores / 3600,
        "supervised": waves * (training + held_out),
        "label": ROUNDS * waves * labeling,
        "students": ROUNDS * waves * training,
        "validate": ROUNDS * waves * held_out,
        "final": training,
    }
    return parts | {"all": sum(parts.values())}


def disk(preset: str, chains: int) -> dict[str, float]:
    """GiB of a whole run: nothing is removed between the rounds."""
    cost = ask(preset)[1]
    unlabeled = UNLABELED / (UNLABELED + LABELED * 1.5)  # labeled cases have half as much again
    # A byte a voxel, where an image has two; and the sample of voxels of each organ, by stage.
    sample = 2 * UNLABELED * flare22.LABELS.count * MAX_CLASS_VOXELS * 3 * 4 / 2**30
    labels = cost.disk_gib * unlabeled / 2 + sample
    models = {"small": 0.2, "base": 1.0}[preset]
    parts = {
        "prepared": cost.disk_gib,
        "pseudo-labels": ROUNDS * chains * labels,
        "models": (ROUNDS + 1) * chains * models + models,
    }
    return parts | {"all": sum(parts.values())}


def chain_lines() -> list[str]:
    """The tables of the whole chain."""
    lines = [
        "",
        f"## The whole chain, simulated: {LABELED + UNLABELED} cases, {ROUNDS} rounds",
        "",
        "Supervised COARSE and FINE; in each round labeling, two students of the same length, validation; the final",
        "models. Five chains are the five folds, side by side as far as there are GPUs. Hours, by part.",
        "",
        "| machine | preset | steps of a training | chains | prepare | supervised | label | students | validate "
        "| final | **hours** | days |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    found = machines()
    for machine in found:
        for iterations in (ITERATIONS, ITERATIONS // 10):
            for chains in (1, FOLDS):
                parts = hours(machine, chains, iterations)
                cells = " | ".join(f"{value:.1f}" for name, value in parts.items() if name != "all")
                whole = f"**{parts['all']:.0f}** | {parts['all'] / 24:.1f}"
                lines.append(f"| {machine.name} | {machine.preset} | {iterations:,} | {chains} | {cells} | {whole} |")
    lines += [
        "",
        "| preset | chains | prepared cases, GiB | pseudo-labels | models | **all** |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for preset in ("base", "small"):
        for chains in (1, FOLDS):
            parts = disk(preset, chains)
            cells = " | ".join(f"{value:.0f}" for name, value in parts.items() if name != "all")
            lines.append(f"| {preset} | {chains} | {cells} | **{parts['all']:.0f}** |")
    lines += [
        "",
        "Pseudo-labels are most of it: a byte a voxel, and up to 10,000 voxels of each organ to draw patches on.",
        "Nothing is removed between the rounds.",
        "",
        "| machine | figure | seconds | | from |",
        "|---|---|---:|---|---|",
    ]
    for machine in found:
        for what, figure in (
            ("a step of COARSE", machine.steps[0]),
            ("a step of FINE", machine.steps[1]),
            ("to label a case", machine.label),
            ("to validate a case", machine.validate),
            ("processor, to prepare a scan", machine.prepare),
        ):
            if machine.name != "four H100":
                lines.append(f"| {machine.name} | {what} | {figure.value:.3g} | {figure.mark} | {figure.source} |")
    one = found[1].for_one
    lines.append(f"| four H100 | one chain, times as fast as on one | {one.value} | {one.mark} | {one.source} |")
    lines += [
        "",
        "Not counted: waiting for data (slow_disk.md says when a disk is too slow), the validations within a training,",
        "and starting. Data are augmented on the processor, for which an H100 is assumed to have cores enough.",
    ]
    return lines


def main() -> None:
    lines = [
        "# FLARE22, estimated",
        "",
        f"Assumed: every scan has {'×'.join(map(str, SHAPE))} voxels of {'×'.join(map(str, SPACING))} mm. Not run.",
        "",
        "| preset | | spacing (mm) | patch | batch | GPU memory | TFLOP a step | hours, 250,000 steps | assumed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    costs = []
    for preset, (device, tflops) in DEVICES.items():
        plans, cost = ask(preset)
        costs.append((preset, tflops, cost))
        for stage in Stage:
            lines.append(_stage_line(preset, stage, plans, cost, device, tflops))
    lines += [
        "",
        "| preset | disk, prepared | preprocessing, one core | memory of each process | prediction, network only |",
        "|---|---|---|---|---|",
    ]
    lines += [_cost_line(preset, tflops, cost) for preset, tflops, cost in costs]
    lines += chain_lines()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def ask(preset: str) -> tuple[Plans, Estimate]:
    grid = Geometry(shape_zyx=SHAPE, spacing_zyx_mm=SPACING)
    fingerprint = _fingerprint()
    plans = make_plans(fingerprint, preset=preset)  # type: ignore[arg-type]
    return plans, estimate(plans, fingerprint, [grid] * LABELED, [grid] * UNLABELED)


def _fingerprint() -> DatasetFingerprint:
    count = flare22.LABELS.count
    case = {
        "shape_zyx": SHAPE,
        "spacing_zyx_mm": SPACING,
        "body_box": BODY,
        "foreground_box": ORGANS,
        "voxels_per_label": (10_000,) * count,
        "annotated": (True,) * count,
    }
    intensities = IntensityStatistics(
        percentile_00_5=-970.0,
        percentile_05=-60.0,
        percentile_50=100.0,
        percentile_95=200.0,
        percentile_99_5=290.0,
        mean=80.0,
        sd=140.0,
    )
    return DatasetFingerprint(
        dataset_name="FLARE22",
        channels=("CT",),
        labels=flare22.LABELS,
        cases=tuple(CaseFingerprint(case_id=f"case_{number:04d}", **case) for number in range(LABELED)),
        intensities=(intensities,),
    )


def _stage_line(preset: str, stage: Stage, plans: Plans, cost: Estimate, device: str, tflops: float) -> str:
    plan = plans.stage(stage)
    one = cost.coarse if stage is Stage.COARSE else cost.fine
    spacing = " × ".join(f"{value:.3g}" for value in plan.spacing_zyx_mm)
    patch = " × ".join(map(str, plan.patch_zyx))
    hours = ITERATIONS * one.training_step_tflop / tflops / 3600
    return (
        f"| {preset} | {stage.value} | {spacing} | {patch} | {plan.batch_size} | {one.training_gib:.1f} GiB "
        f"| {one.training_step_tflop:.2g} | {hours:.1f} | {device}, {tflops:.0f} TFLOP/s |"
    )


def _cost_line(preset: str, tflops: float, cost: Estimate) -> str:
    seconds = (cost.coarse.prediction_tflop + cost.fine.prediction_tflop) / tflops
    return (
        f"| {preset} | {cost.disk_gib:.0f} GiB | {cost.preprocessing_core_hours:.1f} h "
        f"| {cost.worker_gib:.1f} GiB | {seconds:.1f} s a case |"
    )


if __name__ == "__main__":
    main()
