"""flaresemi's training against nnU-Net v2's, the whole loop: how many patches per second, in how much memory?

Both train on the 34 labeled cases of openkbp on a CPU: the network, patch, batch and spacing of flaresemi's FINE plan
(preset `small`, one stage), the ranges and probabilities of nnU-Net's augmentation, mirroring on all axes, half of the
patches on an organ, SGD, and one process that prepares patches. A step is all of it: reading a patch from the files
that the program's own preprocessing wrote, augmentation, transfer, forward, loss, backward, optimizer.

* nnU-Net: nnUNetTrainer with its own loaders, the part of run_training between the start and the end of a training
  epoch; fp32 and no torch.compile, as always on a CPU;
* flaresemi: the loop of its trainer with the defaults, and in fp32 where the default is another precision; with
  --compile also through torch.compile;
* the convolutions alone: those of one step in fp32, forward and backward, each by itself in the faster of torch's two
  memory layouts: what a step would take that had nothing else to do.

Warm-up steps come first, so many that the queues of prepared patches no longer grow. Each measurement is a process of
its own, the sides take turns, and a stopped run goes on. Raw numbers: results/training_throughput.jsonl; tables:
results/training_throughput.md. Where a step's time goes is told by the clock of `flaresemi_train --profile`.

It wants a machine at rest: two threads on two cores that something else uses wait for each other in every layer, which
takes more time than the computation. Where rest is not to be had, --threads 1 is the fairer comparison.

    python benchmarks/training_throughput.py [--steps 20] [--warm-up 8] [--repeats 3] [--threads 2] [--compile]
"""

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import against_nnunet
import running

from flaresemi.compute.precision import cpu_has_bf16
from flaresemi.plans import StagePlan, load_plans

NNUNET = "nnU-Net"

#: A step of torch's convolutions and nothing else.
LIMIT = "the convolutions alone"

#: Processes that prepare patches.
WORKERS = 1

#: How often the memory of those processes is looked at.
LOOK_SECONDS = 0.5


def main() -> None:
    options = _options()
    data = running.need(running.SHARED / "openkbp")
    python = against_nnunet.ensure_environment()
    bench = running.Bench("training_throughput", options.work)
    task = prepared(bench, data, python)
    raw = bench.results / f"{bench.name}.jsonl"
    raw.parent.mkdir(parents=True, exist_ok=True)
    setting = {"steps": options.steps, "warm_up": options.warm_up, "threads": options.threads}
    rows = [json.loads(line) for line in raw.read_text(encoding="utf-8").splitlines()] if raw.exists() else []
    for repeat in range(options.repeats):
        for side, choices in sides(compiled=options.compile).items():
            named = {"side": side, "repeat": repeat, **setting}
            if any(named.items() <= row.items() for row in rows):
                continue
            load = os.getloadavg()[0]
            program = python if side == NNUNET else Path(sys.executable)
            work = "convolutions" if side == LIMIT else "train_loop"
            result = measured(bench, program, work, {**task, **setting, **choices})
            rows.append({**named, **result, "load": load, "made": running.when_and_what()})
            with raw.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            rate = result["patches"] / result["seconds"]
            print(f"{rate:6.2f} patches/s {result['peak_rss_mib']:7.0f} MiB   {side}", flush=True)
    told = report([row for row in rows if setting.items() <= row.items()])
    (bench.results / f"{bench.name}.md").write_text(told, encoding="utf-8")
    print(told)


def sides(*, compiled: bool) -> dict[str, dict]:
    """Who is measured, in turns, and with which choices."""
    found = {NNUNET: {}, "flaresemi": {"precision": "auto", "compile": False}}
    if cpu_has_bf16():
        found["flaresemi, fp32"] = {"precision": "fp32", "compile": False}
    if compiled:
        found["flaresemi, compiled"] = {"precision": "auto", "compile": True}
    return {**found, LIMIT: {}}


def prepared(bench: running.Bench, data: Path, python: Path) -> dict:
    """Plans the dataset and writes the training files of both sides, once; the task of all measurements."""
    workspace = bench.work / "workspace"
    words = ("-d", data, "-w", workspace, "--stages", "one", "--preset", "small")
    bench.command("plan", "flaresemi_plan_and_preprocess", *words)
    task = {
        **plan_of_both(load_plans(workspace / "plans.json").fine),
        "workspace": str(workspace),
        "preprocessed": str(bench.work / "nnunet_preprocessed"),
        "results": str(bench.work / "nnunet_results"),
        "dataset_json": str(data / "dataset.json"),
        "workers": WORKERS,
        "threads": 1,
    }
    if "nnU-Net's files" not in bench.steps:
        labels = sorted((data / "labelsTr").glob("*.nii.gz"))
        ids = [label.name.removesuffix(".nii.gz") for label in labels]
        images = [data / "imagesTr" / f"{case_id}_0000.nii.gz" for case_id in ids]
        cases = [(case_id, str(image), str(label)) for case_id, image, label in zip(ids, images, labels, strict=True)]
        result = measured(bench, python, "training_files", {**task, "cases": cases})
        bench.record("nnU-Net's files", seconds=result["seconds"])
    return task


def plan_of_both(plan: StagePlan) -> dict:
    """The FINE plan in the words of the two sides."""
    network, (intensity,) = plan.network, plan.intensities
    if network.block != "plain" or intensity.scheme != "ct":
        raise SystemExit("this benchmark knows plain networks on CT")
    return {
        "features": network.features,
        "kernels": network.kernels,
        "strides": network.strides,
        "encoder_convs": network.encoder_convs,
        "decoder_convs": network.decoder_convs,
        "classes": network.output_channels,
        "patch_zyx": plan.patch_zyx,
        "batch": plan.batch_size,
        "spacing_zyx_mm": plan.spacing_zyx_mm,
        **{name: value for name, value in dataclasses.asdict(intensity).items() if name != "scheme"},
    }


def measured(bench: running.Bench, program: Path, work: str, task: dict) -> dict:
    """Runs a side in a process of its own; what it reports, and the most memory of the processes that it started."""
    half = "flaresemi_side.py" if program == Path(sys.executable) else "nnunet_side.py"
    command = [str(program), str(against_nnunet.HERE / "sides" / half), work, json.dumps(task)]
    environment = {
        **os.environ,
        "nnUNet_raw": task["preprocessed"],
        "nnUNet_preprocessed": task["preprocessed"],
        "nnUNet_results": task["results"],
        "nnUNet_n_proc_DA": str(task["workers"]),
    }
    output, workers_mib = bench.work / "output.txt", 0.0
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            workers_mib = max(workers_mib, sum(map(private_mib, descendants(process.pid))))
            time.sleep(LOOK_SECONDS)
    lines = output.read_text(encoding="utf-8").splitlines()
    reported = [line for line in lines if line.startswith("{") and '"peak_rss_mib"' in line]
    if process.returncode or not reported:
        raise SystemExit(f"{half} {work} failed; see {output}")
    return {**json.loads(reported[-1]), "workers_mib": workers_mib}


def descendants(parent: int) -> list[int]:
    """The processes below one, as far as they still run."""
    found = []
    for file in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = [int(word) for word in file.read_text(encoding="ascii").split()]
        except OSError:
            continue  # it has ended
        for child in children:
            found += [child, *descendants(child)]
    return found


def private_mib(process: int) -> float:
    """Main memory that only this process holds, so that nothing which the training process holds is counted twice."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0.0  # it has ended
    private = [line.split() for line in text.splitlines() if line.startswith(("Private_Clean:", "Private_Dirty:"))]
    return sum(int(words[1]) for words in private) / 1024


def report(rows: list[dict]) -> str:
    """The tables."""
    if len({tuple(row["shape"]) for row in rows}) > 1:
        raise SystemExit("the sides trained on patches of different shapes")
    batch, _, *patch = rows[0]["shape"]
    loads = [row["load"] for row in rows]
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row["versions"]
    lines = [
        "# Training throughput against nnU-Net v2",
        "",
        f"{datetime.date.today().isoformat()}; {running.machine()}; "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "torch")
        + ".",
        "",
        f"openkbp, {batch} patches of {'×'.join(map(str, patch))} per step, {rows[0]['threads']} thread(s), {WORKERS} "
        f"process that prepares patches; {rows[0]['steps']} steps after {rows[0]['warm_up']} that warm up, "
        f"{max(row['repeat'] for row in rows) + 1} process(es) per line, the sides taking turns; load average before "
        f"them {min(loads):.1f} to {max(loads):.1f}. Network: forward and backward. Peak RSS with workers: and the "
        "memory that only the processes below it hold.",
        "",
        "| side | parameters | patches/s (median, range) | times as fast | waiting for data | network | peak RSS, MiB "
        "| with workers | date, flaresemi |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["side"], []).append(row)
    reference = statistics.median(map(rate, found[NNUNET]))
    lines += [line(side, of_side, reference) for side, of_side in found.items()]
    for side, of_side in found.items():
        if side not in (NNUNET, LIMIT):
            middle = sorted(of_side, key=rate)[len(of_side) // 2]
            lines += ["", f"## A step of {side}", "", "```", middle["table"], "```"]
    return "\n".join([*lines, ""])


def line(side: str, rows: list[dict], reference: float) -> str:
    """A side in the table."""

    def median(name: str) -> float:
        return statistics.median(row[name] for row in rows)

    rates = [rate(row) for row in rows]
    middle = statistics.median(rates)
    network = f"{median('network_share'):.0%}" if "network_share" in rows[0] else "–"
    together = statistics.median(row["peak_rss_mib"] + row["workers_mib"] for row in rows)
    return (
        f"| {side} ({rows[0]['precision']}) | {rows[0]['parameters']:,} | {middle:.2f} ({min(rates):.2f}–"
        f"{max(rates):.2f}) | {middle / reference:.2f} | {median('wait_share'):.1%} | {network} | "
        f"{median('peak_rss_mib'):.0f} | {together:.0f} | {rows[-1]['made']} |"
    )


def rate(row: dict) -> float:
    """Patches per second of a measurement."""
    return row["patches"] / row["seconds"]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=running.WORK, help="folder for all that is written")
    parser.add_argument("--steps", type=int, default=20, help="measured steps [20]")
    parser.add_argument("--warm-up", type=int, default=8, help="steps before them [8]")
    parser.add_argument("--repeats", type=int, default=3, help="processes per line of the table [3]")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"that the network computes with [{cores}]")
    parser.add_argument("--compile", action="store_true", help="also flaresemi through torch.compile")
    return parser.parse_args()


if __name__ == "__main__":
    main()
