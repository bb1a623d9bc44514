"""Hippocampus MR, fold 0 of five (208 cases train, 52 are held out), two seeds, final weights.

Dice of whole images in original geometry. Result: results/hippocampus.md.
"""

import running


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=20, help="of training per seed")
    options = parser.parse_args()
    data = running.need(running.SHARED / "hippocampus")
    bench = running.Bench("hippocampus", options.work)
    parts = [f"# hippocampus: fold 0, {options.minutes:g} CPU minutes of training per seed, 52 held-out cases", ""]
    for seed in (0, 1):
        workspace = bench.work / f"seed_{seed}"
        place = ("-d", data, "-w", workspace)
        bench.command(f"seed {seed} plan", "flaresemi_plan_and_preprocess", *place, "--preset", "small")
        bench.command(
            f"seed {seed} FINE",
            "flaresemi_train",
            "FINE",
            "0",
            *place,
            "--seed",
            seed,
            "--time-budget",
            f"{options.minutes:g}m",
            "--continue",
        )
        summary = workspace / "models" / "fold_0" / "FINE" / "validation" / "summary.json"
        parts += [f"## seed {seed}", "", running.summary_table(summary), ""]
        bench.report("\n".join(parts))


if __name__ == "__main__":
    main()
