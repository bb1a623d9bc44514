"""Head-and-neck CT, 34 labeled cases, at most 40 minutes of training on a CPU: what do the 17 test cases say?

Two arms: one stage (40 minutes of FINE) and two stages (8 minutes of COARSE, 32 of FINE). Dice is counted over whole
volumes, without the z-range rule. Result: results/openkbp.md.
"""

import running


def main() -> None:
    options = running.parser(__doc__ or "").parse_args()
    data = running.need(running.SHARED / "openkbp")
    bench = running.Bench("openkbp", options.work)
    parts = ["# openkbp: 7 organs of head-and-neck CT, trained on 34 cases in 40 CPU minutes, 17 test cases", ""]
    for arm, stages, lengths in (("one", "one", {"FINE": "40m"}), ("two", "two", {"COARSE": "8m", "FINE": "32m"})):
        workspace, predictions = bench.work / arm, bench.work / f"{arm}_predictions"
        summary = bench.work / f"{arm}_summary.json"
        place = ("-d", data, "-w", workspace)
        bench.command(f"{arm} plan", "flaresemi_plan_and_preprocess", *place, "--stages", stages, "--preset", "small")
        for stage, length in lengths.items():
            bench.command(
                f"{arm} {stage}", "flaresemi_train", stage, "all", *place, "--time-budget", length, "--continue"
            )
        bench.command(
            f"{arm} predict", "flaresemi_predict", "-i", data / "imagesTs", "-o", predictions, *place, "--continue"
        )
        bench.command(
            f"{arm} evaluate",
            "flaresemi_evaluate",
            "-p",
            predictions,
            "-r",
            data / "labelsTs",
            "-o",
            summary,
            "-d",
            data,
        )
        parts += [f"## {arm} stage{'s' if arm == 'two' else ''}", "", running.summary_table(summary), ""]
    bench.report("\n".join(parts))


if __name__ == "__main__":
    main()
