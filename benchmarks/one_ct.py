"""One abdominal CT with 12 of FLARE22's 13 organs: does the pipeline redraw its only training case?

A check of the path with 13 labels, of no other worth. Result: results/one_ct.md.
"""

import json

import running


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument(
        "--minutes", type=float, default=25, help="of training, a fifth of it COARSE where there are two"
    )
    options = parser.parse_args()
    source = running.need(running.SHARED / "totalsegmentator")
    bench = running.Bench("one_ct", options.work)
    data, workspace = bench.work / "data", bench.work / "workspace"
    running.link_or_copy(source / "example_ct.nii.gz", data / "labeled_image" / "example_0000.nii.gz")
    running.link_or_copy(source / "example_ct_flare13_labels.nii.gz", data / "labeled_mask" / "example.nii.gz")
    place = ("-d", data, "-w", workspace)
    bench.command("plan", "flaresemi_plan_and_preprocess", *place, "--preset", "small")
    plans = json.loads((workspace / "plans.json").read_text(encoding="utf-8"))
    two = plans["fine"]["region"] == "organs"
    if two:
        length = f"{options.minutes * 0.2:g}m"
        bench.command("COARSE", "flaresemi_train", "COARSE", "all", *place, "--time-budget", length, "--continue")
    length = f"{options.minutes * (0.8 if two else 1):g}m"
    bench.command("FINE", "flaresemi_train", "FINE", "all", *place, "--time-budget", length, "--continue")
    predictions, summary = bench.work / "predictions", bench.work / "summary.json"
    bench.command("predict", "flaresemi_predict", "-i", data / "labeled_image", "-o", predictions, *place, "--continue")
    bench.command(
        "evaluate", "flaresemi_evaluate", "-p", predictions, "-r", data / "labeled_mask", "-o", summary, "-d", data
    )
    organs = json.loads(summary.read_text(encoding="utf-8"))["organs"]
    present = [organ["dice"]["mean"] for organ in organs if organ["present"]]
    bench.report(
        f"# one CT with FLARE22's labels, {'two stages' if two else 'one stage'}, {options.minutes:g} CPU minutes\n\n"
        f"Mean Dice of the {len(present)} organs that are there: **{sum(present) / len(present):.3f}**\n\n"
        + running.summary_table(summary)
    )


if __name__ == "__main__":
    main()
