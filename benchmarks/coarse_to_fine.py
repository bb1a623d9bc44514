"""Does COARSE earn its place? Phantom CTs of about 512×512×200: two stages against one at equal training time.

Dice, recall of the region that COARSE finds, prediction time. Time is processor time: some steps of each training are
timed first, then every training gets as many as its share of the budget pays for, so that other work on the machine
does not favor an arm. Result: results/coarse_to_fine.md.
"""

import json
import resource
import shutil
from pathlib import Path

import running

from flaresemi.compute.device import available_cores
from flaresemi.phantom import write_phantom_dataset

SHAPE = (200, 512, 512)

#: Share of the budget by stage; COARSE is the smaller network.
SHARES = {"two": {"COARSE": 0.3, "FINE": 0.7}, "one": {"FINE": 1.0}}

#: Steps of the two short trainings whose difference is a step's time.
TIMED = (4, 16)


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument(
        "--minutes", type=float, default=30, help="of training per arm, three tenths of it COARSE where there are two"
    )
    parser.add_argument("--labeled", type=int, default=8)
    parser.add_argument("--test", type=int, default=3)
    options = parser.parse_args()
    bench = running.Bench("coarse_to_fine", options.work)
    data = bench.work / "data"
    if "data" not in bench.steps:
        write_phantom_dataset(
            data, layout="flaresemi", labeled=options.labeled, unlabeled=0, test=options.test, size=SHAPE, seed=1
        )
        bench.record("data")
    for arm in SHARES:
        bench.command(
            f"{arm} plan", "flaresemi_plan_and_preprocess", *_place(bench, arm), "--stages", arm, "--preset", "small"
        )
    lengths = {
        (arm, stage): round(60 * options.minutes * share * available_cores() / _step_seconds(bench, arm, stage))
        for arm, shares in SHARES.items()
        for stage, share in shares.items()
    }
    told = ", ".join(f"{stage} of {arm} {steps}" for (arm, stage), steps in lengths.items())
    title = f"# coarse-to-fine: phantom {SHAPE[1]}×{SHAPE[2]}×{SHAPE[0]}, {options.minutes:g} CPU minutes per arm"
    parts = [title, "", f"{options.labeled} labeled cases, fold 0. Training steps: {told}.", ""]
    for arm in SHARES:
        parts += _arm(bench, arm, {stage: lengths[arm, stage] for stage in SHARES[arm]}, options.test)
        bench.report("\n".join(parts))


def _place(bench: running.Bench, arm: str) -> tuple[str | Path, ...]:
    return ("-d", bench.work / "data", "-w", bench.work / arm)


def _step_seconds(bench: running.Bench, arm: str, stage: str) -> float:
    """Processor seconds of a training step, of all threads and workers together."""
    step = f"{arm} {stage} timing"
    if step not in bench.steps:
        workspace, timing = bench.work / arm, bench.work / f"{arm}_timing"
        shutil.rmtree(timing, ignore_errors=True)
        timing.mkdir()
        for path in workspace.iterdir():
            (timing / path.name).symlink_to(path)
        taken = []
        for steps in TIMED:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            bench.command(
                f"{step} {steps}",
                "flaresemi_train",
                stage,
                "0",
                "-d",
                bench.work / "data",
                "-w",
                timing,
                "--iterations",
                steps,
                "--validations",
                0,
                "--no-validation",
                "--restart",
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        bench.record(step, cpu_seconds=(taken[1] - taken[0]) / (TIMED[1] - TIMED[0]))
    return bench.steps[step]["cpu_seconds"]


def _arm(bench: running.Bench, arm: str, lengths: dict[str, int], cases: int) -> list[str]:
    """Trains, predicts and scores an arm; its part of the report."""
    data, place = bench.work / "data", _place(bench, arm)
    predictions, summary = bench.work / f"{arm}_predictions", bench.work / f"{arm}_summary.json"
    for stage, steps in lengths.items():
        bench.command(f"{arm} {stage}", "flaresemi_train", stage, "0", *place, "--iterations", steps, "--continue")
    seconds = bench.command(
        f"{arm} predict",
        "flaresemi_predict",
        "-i",
        data / "test_image",
        "-o",
        predictions,
        *place,
        "--fold",
        "0",
        "--continue",
    )
    bench.command(
        f"{arm} evaluate", "flaresemi_evaluate", "-p", predictions, "-r", data / "test_mask", "-o", summary, "-d", data
    )
    return [
        f"## {arm} stage{'s' if arm == 'two' else ''}",
        "",
        f"Prediction: {seconds / cases:.1f} s a case (whole command over {cases}).",
        "",
        running.summary_table(summary),
        "",
        *(_recall(bench.work / arm) if arm == "two" else ()),
    ]


def _recall(workspace: Path) -> list[str]:
    """Shares of the organs inside the region that COARSE finds, over the held-out cases."""
    recalls: list[tuple[str, float]] = []
    for path in sorted((workspace / "models" / "fold_0" / "COARSE" / "validation").glob("*.json")):
        recalls += (json.loads(path.read_text(encoding="utf-8")).get("recall") or {}).items()
    organ, worst = min(recalls, key=lambda item: item[1])
    mean = sum(share for _, share in recalls) / len(recalls)
    return [f"Recall of the region on held-out cases: mean {mean:.4f}, worst {worst:.4f} ({organ}).", ""]


if __name__ == "__main__":
    main()
