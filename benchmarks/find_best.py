"""Does COARSE earn its place? flaresemi_find_best on what two stages and one held out, trained for the same steps.

    hippocampus   fold 0: 208 cases train, 52 are held out; the images are cut to the organ already
    acdc          7 labeled patients (14 volumes) train, the 10 validation patients (20 volumes) are held out

One stage gets the steps of FINE and COARSE together. Batch 2, preset `small` (of ACDC with half of its features and
patches of 8×64×64 voxels), last weights.

    OMP_NUM_THREADS=1 python benchmarks/find_best.py [--data hippocampus acdc] [--fine 400] [--coarse 200]

Every step is run once and a stopped one goes on: start the same command again.
"""

import json
from pathlib import Path

import running

from flaresemi.comparing.finding import choice_path
from flaresemi.comparing.page import table
from flaresemi.files import write_text
from flaresemi.inference.choice import load_choice

STAGES = {"one": ("FINE",), "two": ("COARSE", "FINE")}

PATCH_ZYX = (8, 64, 64)


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--data", nargs="+", choices=("hippocampus", "acdc"), default=["hippocampus", "acdc"])
    parser.add_argument("--fine", type=int, default=400, help="steps of FINE behind COARSE")
    parser.add_argument("--coarse", type=int, default=200, help="steps of COARSE")
    options = parser.parse_args()
    bench = running.Bench("find_best", options.work)
    steps = {
        "one": {"FINE": options.fine + options.coarse},
        "two": {"COARSE": options.coarse, "FINE": options.fine},
    }
    for name in options.data:
        data = dataset(bench.work, name)
        for arm, stages in STAGES.items():
            place = ("-d", data, "-w", bench.work / name / arm)
            words = (*place, "--preset", "small", "--stages", arm, "--workers", "1")
            bench.command(f"{name} {arm} plan", "flaresemi_plan_and_preprocess", *words)
            if name == "acdc":
                running.halve_features(bench.work / name / arm / "plans.json", PATCH_ZYX)
            for stage in stages:
                lengths = ("--iterations", steps[arm][stage], "--batch-size", 2, "--validations", 0, "--no-validation")
                words = (*place, *lengths, "--loader-workers", 0, "--continue")
                bench.command(f"{name} {arm} {stage}", "flaresemi_train", stage, "0", *words)
        output = bench.work / name / "best"
        models = [bench.work / name / arm for arm in STAGES]
        bench.command(f"{name} find", "flaresemi_find_best", "-m", *models, "-o", output, "-d", data)
        report(bench)


def dataset(work: Path, name: str) -> Path:
    """The folder of a dataset; of ACDC, one with the labels and the fold of this comparison."""
    source = running.need(running.SHARED / name)
    if name == "hippocampus":
        return source
    folder = work / f"data_{name}"
    split = json.loads((source / "split.json").read_text(encoding="utf-8"))
    train, held_out = split["labeled_7_patients"], split["validation"]
    for case in (*train, *held_out):
        for kind, file in (("imagesTr", f"{case}_0000.nii.gz"), ("labelsTr", f"{case}.nii.gz")):
            running.link_or_copy(source / kind / file, folder / kind / file)
    running.link_or_copy(source / "dataset.json", folder / "dataset.json")
    write_text(folder / "splits_final.json", json.dumps([{"train": train, "val": held_out}]))
    return folder


def report(bench: running.Bench) -> None:
    """What the command printed."""
    lines = ["# flaresemi_find_best: one stage and two on held-out cases"]
    for name in ("hippocampus", "acdc"):
        if f"{name} find" in bench.steps:
            choice = load_choice(choice_path(bench.work / name / "best"))
            lines += ["", f"## {name}", "", "```", table(choice), "```"]
    bench.report("\n".join(lines))


if __name__ == "__main__":
    main()
