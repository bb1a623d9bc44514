"""flaresemi against nnU-Net v2: from an image file to its label map, whole processes, taking turns.

Three settings, so that engineering is told apart from a smaller model:

* same windows: the same network (30.7 million parameters, random weights) over the whole image, air and all, in its
  windows and at its spacing;
* same network: FINE is that network at that spacing, but the organs' region is found first and windows are ours;
* small: the two stages of the `small` preset as benchmarks/coarse_to_fine.py trained them.

nnU-Net without mirroring, with one process each for reading and writing. Each measurement is a process of its own; a
stopped run goes on. Raw numbers: results/prediction.jsonl; table: results/prediction.md.

    python benchmarks/prediction.py [--data FOLDER] [-m FOLDER] [--repeats 1] [--scans NAME ...]
"""

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import against_nnunet
import running

from flaresemi.geometry import FloatTriple, Geometry
from flaresemi.io.images import write_label_map
from flaresemi.phantom import make_phantom

RAW = running.RESULTS / "prediction.jsonl"

#: nnU-Net's 3d_fullres plan for abdominal CT (6 levels, anisotropic first ones), in 2.5 × 0.8 × 0.8 mm.
NETWORK = {
    "features": [32, 64, 128, 256, 320, 320],
    "kernels": [[1, 3, 3]] + [[3, 3, 3]] * 5,
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
    "encoder_convs": [2] * 6,
    "decoder_convs": [2] * 5,
    "patch_zyx": [40, 224, 192],
    "spacing_zyx_mm": [2.5, 0.8, 0.8],
    "classes": 14,
    "threads": len(os.sched_getaffinity(0)),
    **against_nnunet.INTENSITIES,
}

#: (name, slices, spacing): phantoms; the CT with None is a file.
SCANS = {
    "phantom 512×512×100": (100, (2.0, 0.75, 0.75)),
    "crlm_ct 512×512×41": None,
    "phantom 512×512×300": (300, (1.0, 0.75, 0.75)),
}

SIDES = ("nnU-Net", "same windows", "same network", "small")

SEED = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=running.SHARED, help="folder of real volumes")
    running.phantom_models(parser)
    parser.add_argument("--repeats", type=int, default=1, help="processes per line of the table [1]")
    parser.add_argument("--scans", nargs="+", choices=SCANS, default=list(SCANS), help="which scans")
    options = parser.parse_args()
    work = running.WORK / "prediction"
    python = against_nnunet.ensure_environment()
    commands = Commands(work, python, running.need(options.model))
    rows = [json.loads(line) for line in RAW.read_text(encoding="utf-8").splitlines()] if RAW.exists() else []
    for repeat in range(options.repeats):
        for scan in options.scans:
            image = scan_file(scan, work, options.data)
            for side in SIDES:
                if any((row["scan"], row["side"], row["repeat"]) == (scan, side, repeat) for row in rows):
                    continue
                shutil.rmtree(work / "output", ignore_errors=True)
                row = {"scan": scan, "side": side, "repeat": repeat, **measured(commands.of(side, image))}
                efficiency = list((work / "output").glob("efficiency/*.json"))
                if efficiency:
                    row["steps"] = json.loads(efficiency[0].read_text(encoding="utf-8"))["steps"]
                rows.append({**row, "date": datetime.date.today().isoformat()})
                with RAW.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(f"{row['seconds']:8.1f} s {row['peak_rss_mib']:7.0f} MiB   {scan}   {side}", flush=True)
    (running.RESULTS / "prediction.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def scan_file(name: str, work: Path, data: Path) -> Path:
    """The image in a folder of its own, as nnU-Net wants it."""
    drawn = SCANS[name]
    file = work / name.replace(" ", "_").replace("×", "x") / "case_0000.nii.gz"
    if drawn is None:
        running.link_or_copy(running.need(data / "crlm_ct" / "CRLM-CT-1004_0000.nii.gz"), file)
    elif not file.exists():
        slices, spacing = drawn
        phantom = make_phantom(SEED, shape_zyx=(slices, 512, 512), vary=False, geometry=field(slices, spacing))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(file, phantom.image_hu, phantom.source)
    return file


def field(slices: int, spacing_zyx_mm: FloatTriple) -> Geometry:
    """A grid of this size in the middle of the patient."""
    drawn = make_phantom(SEED, shape_zyx=(8, 8, 8), vary=False).source.canonical
    centered = Geometry(shape_zyx=(slices, 512, 512), spacing_zyx_mm=spacing_zyx_mm)
    there, here = (grid.world_xyz_mm(tuple((size - 1) / 2 for size in grid.shape_zyx)) for grid in (drawn, centered))
    x, y, z = (middle - own for middle, own in zip(there, here, strict=True))
    return dataclasses.replace(centered, origin_xyz_mm=(x, y, z))


class Commands:
    """What to run for each side; makes the models of random weights first."""

    def __init__(self, work: Path, python: Path, models: Path) -> None:
        self.work, self.python, self.models = work, python, models
        for side, program, task in (
            ("nnU-Net", python, {}),
            ("same windows", sys.executable, {"region": "body", "background_bias": 0}),
            ("same network", sys.executable, {"region": "organs", "background_bias": 1000}),
        ):
            if not self._model(side).exists():
                self._model(side).parent.mkdir(parents=True, exist_ok=True)
                more = {"coarse": str(models), "folder": str(self._model(side))}
                line = [*self._side(side, program), "model", json.dumps({**NETWORK, **more, **task})]
                subprocess.run(line, check=True, stdout=subprocess.DEVNULL)

    def of(self, side: str, image: Path) -> list[str]:
        output = str(self.work / "output")
        if side == "nnU-Net":
            program = str(self.python.parent / "nnUNetv2_predict_from_modelfolder")
            return [
                program,
                "-i",
                str(image.parent),
                "-o",
                output,
                "-m",
                str(self._model(side)),
                "-f",
                "0",
                "-device",
                "cpu",
                "--disable_tta",
                "-npp",
                "1",
                "-nps",
                "1",
                "--disable_progress_bar",
            ]
        if side == "same windows":
            task = {**NETWORK, "model": str(self._model(side)), "image": str(image), "output": f"{output}/case.nii.gz"}
            return [*self._side(side, sys.executable), "predict_whole", json.dumps(task)]
        model = self.models if side == "small" else self._model(side)
        program = str(Path(sys.executable).parent / "flaresemi_predict")
        return [program, "-i", str(image), "-o", output, "-m", str(model), "--measure"]

    def _model(self, side: str) -> Path:
        return self.work / "models" / side.replace(" ", "_")

    @staticmethod
    def _side(side: str, program: str | Path) -> list[str]:
        script = "nnunet_side.py" if side == "nnU-Net" else "flaresemi_side.py"
        return [str(program), str(against_nnunet.HERE / "sides" / script)]


def measured(command: list[str]) -> dict:
    """Runs a process; its wall time, processor time and the largest memory of it or one of its children."""
    spent = running.spent(command, running.WORK / "prediction" / "log.txt")
    return {"seconds": spent.seconds, "cpu_seconds": spent.cpu_seconds, "peak_rss_mib": spent.peak_mib}


def table(rows: list[dict]) -> str:
    lines = [
        "# prediction against nnU-Net v2",
        "",
        f"{running.machine()}; {against_nnunet.NNUNET}, no mirroring. Whole processes, taking turns; median over "
        f"{max(row['repeat'] for row in rows) + 1} run(s). Peak memory: of the largest process.",
        "",
        "| scan | side | seconds | times as fast | peak RSS, MiB | share | date | where the time went |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for scan in SCANS:
        of_scan = [row for row in rows if row["scan"] == scan]
        reference = [row for row in of_scan if row["side"] == "nnU-Net"]
        for side in SIDES:
            found = [row for row in of_scan if row["side"] == side]
            if not found or not reference:
                continue
            seconds, memory = (statistics.median(row[key] for row in found) for key in ("seconds", "peak_rss_mib"))
            slow, large = (statistics.median(row[key] for row in reference) for key in ("seconds", "peak_rss_mib"))
            steps = ", ".join(f"{name} {taken:.1f}" for name, taken in found[-1].get("steps", {}).items())
            lines.append(
                f"| {scan} | {side} | {seconds:.1f} | {slow / seconds:.1f} | {memory:.0f} | {memory / large:.2f} | "
                f"{found[-1]['date']} | {steps} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
