"""Head-and-neck CT, 34 labeled cases, half an hour of training on a CPU: what do the 17 test cases say?

Two arms: one stage, and two stages where COARSE gets a fifth of the time. Dice is counted over whole
volumes, without the z-range rule. Result: results/openkbp.md.
"""

import running

#: Share of the training time by stage.
ARMS = {"one": {"FINE": 1.0}, "two": {"COARSE": 0.2, "FINE": 0.8}}


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=30, help="of training per arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="one stage, two, or both [both]")
    options = parser.parse_args()
    data = running.need(running.SHARED / "openkbp")
    bench = running.Bench("openkbp", options.work)
    parts = [f"# openkbp: 7 organs of CT, trained on 34 cases in {options.minutes:g} CPU minutes, 17 test cases", ""]
    for arm in options.arms:
        workspace, predictions = bench.work / arm, bench.work / f"{arm}_predictions"
        summary = bench.work / f"{arm}_summary.json"
        place = ("-d", data, "-w", workspace)
        bench.command(f"{arm} plan", "flaresemi_plan_and_preprocess", *place, "--stages", arm, "--preset", "small")
        for stage, share in ARMS[arm].items():
            length = f"{options.minutes * share:g}m"
            bench.command(
                f"{arm} {stage}", "flaresemi_train", stage, "all", *place, "--time-budget", length, "--continue"
            )
        bench.command(
            f"{arm} predict", "flaresemi_predict", "-i", data / "imagesTs", "-o", predictions, *place, "--continue"
        )
        words = ("-p", predictions, "-r", data / "labelsTs", "-o", summary, "-d", data)
        bench.command(f"{arm} evaluate", "flaresemi_evaluate", *words)
        parts += [f"## {arm} stage{'s' if arm == 'two' else ''}", "", running.summary_table(summary), ""]
        bench.report("\n".join(parts))


if __name__ == "__main__":
    main()
