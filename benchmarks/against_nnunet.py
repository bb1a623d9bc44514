"""flaresemi against nnU-Net v2 on the same cases: preprocessing and one training step, time and peak memory.

Each measurement is a process of its own, in its own environment; the two sides take turns, so that whatever else the
machine does falls on both. Raw numbers go to results/against_nnunet.jsonl as they come (a stopped run goes on there),
the tables to results/against_nnunet.md.

    make bench        or        python benchmarks/against_nnunet.py [--data FOLDER] [--repeats 3] [--restart]
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
ENVIRONMENT = HERE / ".nnunet-venv"
NNUNET = "nnunetv2==2.8.1"
RAW = HERE / "results" / "against_nnunet.jsonl"
TABLES = HERE / "results" / "against_nnunet.md"

#: Clipping and z-score of CT; the same numbers on both sides (about those of an abdominal dataset).
INTENSITIES = {"clip_low": -160.0, "clip_high": 240.0, "mean": 60.0, "sd": 90.0}

#: (name, image, label, target spacing): a head and neck CT to its dataset's median spacing; a thin abdominal slab and a
#: thick-slice abdomen to 2.5 × 0.8 × 0.8 mm, about what FLARE22 is planned with.
CASES = (
    (
        "openkbp 66×116×119",
        "openkbp/imagesTr/okbp_004_0000.nii.gz",
        "openkbp/labelsTr/okbp_004.nii.gz",
        (2.5, 4.2, 4.2),
    ),
    (
        "abdomen 20×512×512",
        "totalsegmentator/example_ct_dicom.nii.gz",
        "totalsegmentator/example_seg_dicom_on_ct_grid.nii.gz",
        (2.5, 0.8, 0.8),
    ),
    ("abdomen 41×512×512 without label", "crlm_ct/CRLM-CT-1004_0000.nii.gz", None, (2.5, 0.8, 0.8)),
)

#: (name, features, patch, batch, classes): five levels, two convolutions each, 3³ kernels.
NETWORKS = (
    ("16…160, 2 × 80×48×64, 8 classes", (16, 32, 64, 128, 160), (80, 48, 64), 2, 8),
    ("32…320, 2 × 64×96×96, 14 classes", (32, 64, 128, 256, 320), (64, 96, 96), 2, 14),
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One process to run: who does what."""

    group: str
    subject: str
    side: str
    work: str
    task: dict

    @property
    def key(self) -> str:
        return f"{self.group} | {self.subject} | {self.side}"


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    python = ensure_environment()
    if options.restart:
        RAW.unlink(missing_ok=True)
    RAW.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in RAW.read_text(encoding="utf-8").splitlines()] if RAW.exists() else []
    for repeat in range(options.repeats):
        for measurement in _measurements(options.data):
            if any(row["key"] == measurement.key and row["repeat"] == repeat for row in done):
                continue
            row = {"key": measurement.key, "repeat": repeat, **_measure(measurement, python)}
            done.append(row)
            with RAW.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['seconds']:8.2f} s {row['peak_rss_mib']:7.0f} MiB   {measurement.key}", flush=True)
    TABLES.write_text(_tables(done), encoding="utf-8")
    print(f"\n{TABLES.read_text(encoding='utf-8')}\nwritten to {TABLES}")


def ensure_environment() -> Path:
    """Sets up nnU-Net's own environment, once; gives its Python."""
    python, ready = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".ready"
    if not ready.exists():
        pip = [str(python), "-m", "pip", "install", "-c", str(REPOSITORY / "constraints.txt")]
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        subprocess.run([*pip, NNUNET], check=True)
        ready.touch()
    return python


def _measurements(data: Path) -> Iterator[Measurement]:
    for name, image, label, spacing in CASES:
        task = {
            "image": str(data / image),
            "label": str(data / label) if label else None,
            "spacing_zyx_mm": spacing,
            "threads": 1,
            **INTENSITIES,
        }
        for work, group in (("preprocess", "preprocessing"), ("resample", "resampling alone")):
            yield Measurement(group, name, "nnU-Net (cubic)", work, task)
            yield Measurement(group, name, "flaresemi (linear)", work, {**task, "resampling": "linear"})
            yield Measurement(group, name, "flaresemi (cubic)", work, {**task, "resampling": "cubic"})
    for name, features, patch, batch, classes in NETWORKS:
        levels = len(features)
        task = {
            "features": features,
            "kernels": [[3, 3, 3]] * levels,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
            "encoder_convs": [2] * levels,
            "decoder_convs": [2] * (levels - 1),
            "patch_zyx": patch,
            "batch": batch,
            "classes": classes,
            "steps": 3,
            "threads": 2,
        }
        yield Measurement("training step", name, "nnU-Net (fp32)", "train", task)
        yield Measurement("training step", name, "flaresemi (auto)", "train", {**task, "precision": "auto"})
        yield Measurement("training step", name, "flaresemi (fp32)", "train", {**task, "precision": "fp32"})


def _measure(measurement: Measurement, nnunet_python: Path) -> dict:
    theirs = measurement.side.startswith("nnU-Net")
    script = HERE / "sides" / ("nnunet_side.py" if theirs else "flaresemi_side.py")
    threads = str(measurement.task["threads"])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }
    command = [
        str(nnunet_python if theirs else sys.executable),
        str(script),
        measurement.work,
        json.dumps(measurement.task),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"{measurement.key} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _tables(rows: list[dict]) -> str:
    lines = ["# flaresemi against nnU-Net v2", "", *_circumstances(rows), ""]
    groups: dict[str, dict[str, dict[str, list[dict]]]] = {}
    for row in rows:
        group, subject, side = row["key"].split(" | ")
        groups.setdefault(group, {}).setdefault(subject, {}).setdefault(side, []).append(row)
    for group, subjects in groups.items():
        lines += [f"## {group}", "", "| | | seconds (median, range) | times as fast | peak RSS | of that before |"]
        lines += ["|---|---|---|---|---|---|"]
        for subject, sides in subjects.items():
            reference = next(_median(found) for side, found in sides.items() if side.startswith("nnU-Net"))
            for side, found in sides.items():
                lines.append(_line(subject, side, found, reference))
        lines.append("")
    return "\n".join(lines)


def _line(subject: str, side: str, rows: list[dict], reference: float) -> str:
    seconds = [row["seconds"] for row in rows]
    middle, low, high = _median(rows), min(seconds), max(seconds)
    peak = statistics.median(row["peak_rss_mib"] for row in rows)
    before = statistics.median(row["rss_before_mib"] for row in rows)
    detail = rows[0].get("precision") or "×".join(map(str, rows[0]["shape"]))
    return (
        f"| {subject} | {side}, {detail} | {middle:.2f} ({low:.2f}–{high:.2f}) | {reference / middle:.1f} "
        f"| {peak:.0f} MiB | {before:.0f} MiB |"
    )


def _median(rows: list[dict]) -> float:
    return statistics.median(row["seconds"] for row in rows)


def _circumstances(rows: list[dict]) -> list[str]:
    versions: dict[str, str] = {}
    for row in rows:
        versions |= row["versions"]
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0))
    stated = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return [
        f"{datetime.date.today().isoformat()}; {processor}, {cores} cores, CPU only; "
        f"Python {platform.python_version()}; {stated}.",
        "",
        f"{max(row['repeat'] for row in rows) + 1} processes per line, the sides taking turns. Preprocessing runs on "
        "one thread from arrays in memory to the files that training reads; a training step runs on two threads, the "
        "mean of three steps after a first one. nnU-Net uses its defaults (cubic images; fp32 on a CPU).",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="folder of real volumes"
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes per line of the tables [3]")
    parser.add_argument("--restart", action="store_true", help="discard earlier measurements")
    return parser


if __name__ == "__main__":
    main()
