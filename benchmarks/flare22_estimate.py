"""What FLARE22 would cost: plans and estimates for 50 labeled and 2000 unlabeled CTs, from an assumed typical case.

Nothing is measured here and no scan is read: the planner and the estimates are asked about a fingerprint whose 50 cases
are all the assumed one. On the data themselves `flaresemi_plan_and_preprocess` prints the same from their headers.

    python benchmarks/flare22_estimate.py        writes results/flare22_estimate.md
"""

from pathlib import Path

from flaresemi import flare22
from flaresemi.geometry import BoundingBox, Geometry
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
