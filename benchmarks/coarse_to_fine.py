"""Does COARSE earn its place? Phantom CTs of about 512×512×200: two stages against one at equal training time.

Dice, recall of the region that COARSE finds, prediction time. Result: results/coarse_to_fine.md.
"""

import json

import running

from flaresemi.phantom import write_phantom_dataset

SHAPE = (200, 512, 512)


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
    parts = [f"# coarse-to-fine: phantom {SHAPE[1]}×{SHAPE[2]}×{SHAPE[0]}, {options.minutes:g} CPU minutes per arm", ""]
    for arm, stages in (("two", "two"), ("one", "one")):
        workspace, predictions, summary = (
            bench.work / f"{arm}{part}" for part in ("", "_predictions", "_summary.json")
        )
        place = ("-d", data, "-w", workspace)
        bench.command(f"{arm} plan", "flaresemi_plan_and_preprocess", *place, "--stages", stages, "--preset", "small")
        lengths = {"COARSE": 0.3, "FINE": 0.7} if arm == "two" else {"FINE": 1.0}
        for stage, share in lengths.items():
            bench.command(
                f"{arm} {stage}", "flaresemi_train", stage, "0", *place,
                "--time-budget", f"{options.minutes * share:g}m", "--continue",
            )  # fmt: skip
        seconds = bench.command(
            f"{arm} predict", "flaresemi_predict", "-i", data / "test_image", "-o", predictions, *place, "--fold", "0",
            "--continue",
        )  # fmt: skip
        bench.command(
            f"{arm} evaluate",
            "flaresemi_evaluate",
            "-p",
            predictions,
            "-r",
            data / "test_mask",
            "-o",
            summary,
            "-d",
            data,
        )
        parts += [
            f"## {arm} stage{'s' if arm == 'two' else ''}", "",
            f"Prediction: {seconds / options.test:.1f} s a case (whole command over {options.test}).", "",
            running.summary_table(summary), "",
        ]  # fmt: skip
        if arm == "two":
            recalls: list[tuple[str, float]] = []
            for path in sorted((workspace / "models" / "fold_0" / "COARSE" / "validation").glob("*.json")):
                recalls += (json.loads(path.read_text(encoding="utf-8")).get("recall") or {}).items()
            worst = min(recalls, key=lambda item: item[1])
            mean = sum(share for _, share in recalls) / len(recalls)
            parts += [
                f"Recall of the region on held-out cases: mean {mean:.4f}, worst {worst[1]:.4f} ({worst[0]}).",
                "",
            ]
        bench.report("\n".join(parts))


if __name__ == "__main__":
    main()
