"""Prediction on a GPU, end to end: time by step, memory and use of the card, before and after, what the engine chooses.

CTs of 512×512 by 100 and 300 slices, the two stages of the presets `small` and `base`, 14 and 117 classes. The weights
are made: they say what a trained network's would in the same time, but not where organs are. So COARSE runs and the
region is the phantom's, FINE finds nothing, and the restoring is measured apart, from logits of a label map. Images are
segmented in turn

* as before (but for the restoring): prepared on the CPU, contiguous, windows by rule (`--engine torch`);
* prepared on the GPU, the same otherwise;
* that, in the way that the engine finds to be the fastest.

Then one command with one and with five images, whole processes; and, where nnU-Net v2 can be imported, its own command
and flaresemi with the same model of nnU-Net: the same network in the same windows.

Results come as they are made, the likely most wanted first, into `results`: raw ones in gpu_prediction.jsonl, of which
what is there is not made again, tables in gpu_prediction.md. Under ten minutes; `--tiny` tries it on any machine, in
volumes and networks that say nothing of speed, and writes into its folder of work.

    python benchmarks/gpu_prediction.py [--minutes 9] [--restart] [--tiny] [--parts images restoring upload ...]
"""

import dataclasses
import functools
import gc
import importlib.util
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import running
import torch
from flare22_estimate import ask
from gpu_step import outside_the_allocator_mib

from flaresemi.compute.device import select_device, synchronize, upload
from flaresemi.compute.metering import StepClock, peak_rss_mib
from flaresemi.geometry import BoundingBox, Geometry
from flaresemi.inference import cascade
from flaresemi.inference.cascade import Segmenter
from flaresemi.inference.restoring import restored_labels
from flaresemi.io.grids import SourceGrid
from flaresemi.io.images import Image, write_label_map
from flaresemi.labels import Label, LabelSet
from flaresemi.networks.building import build_network
from flaresemi.networks.checkpoint import Checkpoint, save_checkpoint
from flaresemi.phantom import make_phantom
from flaresemi.plans import Stage, StagePlan
from flaresemi.preprocessing.preprocessor import prepare
from flaresemi.workspace import Workspace

PARTS = ("images", "restoring", "upload", "command", "nnunet")

#: What is measured of images, the likely most wanted first: preset, classes, slices.
CASES = [
    *itertools.product(("small", "base"), (14,), (100, 300)),
    *itertools.product(("small", "base"), (117,), (300,)),
]

#: What is restored: classes, slices.
RESTORED = [*itertools.product((14, 117), (100, 300))]

#: Name, engine, prepared on the GPU.
VARIANTS = (("as before", "torch", False), ("prepared on the GPU", "torch", True), ("and in its own way", "auto", True))

FIELD_MM = (300.0, 409.6, 409.6)
SEED, TRIES = 3, 3

#: A use of the card is looked at for so long, at least.
WATCHED_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Scan:
    """A phantom of few voxels, each of them many: only its extents matter."""

    image: Image
    labels_zyx: np.ndarray

    @functools.cached_property
    def organs(self) -> BoundingBox:
        box = BoundingBox.of_mask(self.labels_zyx > 0)
        assert box is not None
        return box


class Results:
    """Rows, in a file as they come, and the tables that follow."""

    def __init__(self, folder: Path, minutes: float, *, restart: bool) -> None:
        self.raw, self.tables = folder / "gpu_prediction.jsonl", folder / "gpu_prediction.md"
        if restart:
            self.raw.unlink(missing_ok=True)
        text = self.raw.read_text(encoding="utf-8") if self.raw.exists() else ""
        self.rows: list[dict] = [json.loads(line) for line in text.splitlines()]
        self._made = running.when_and_what()
        self._until = time.monotonic() + 60 * minutes

    def missing(self, **key: object) -> bool:
        """Whether a row is not there yet, and there is time to make it."""
        return time.monotonic() < self._until and not any(row["key"] == key for row in self.rows)

    def add(self, key: dict, **found: object) -> None:
        self.rows.append({"key": key, **found, "made": self._made})
        with self.raw.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        print(json.dumps(self.rows[-1]), flush=True)
        self.tables.write_text(tables(self.rows), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=9, help="nothing is begun after so many [9]")
    parser.add_argument("--restart", action="store_true", help="make all rows again")
    parser.add_argument("--tiny", action="store_true", help="try it: tiny volumes and networks, on any device")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the measurements")
    options = parser.parse_args(argv)
    device = select_device()
    if device.type == "cpu" and not options.tiny:
        raise SystemExit("there is no GPU; --tiny tries this script on a CPU")
    work = options.work / "gpu_prediction"
    work.mkdir(parents=True, exist_ok=True)
    results = Results(work if options.tiny else running.RESULTS, options.minutes, restart=options.restart)
    cascade.StepClock = functools.partial(StepClock, settle=functools.partial(synchronize, device))
    make = {"images": images, "restoring": restoring, "upload": uploads, "command": commands, "nnunet": nnunet}
    for part in options.parts:
        try:
            make[part](results, device, work, tiny=options.tiny)
        except (torch.OutOfMemoryError, subprocess.CalledProcessError, OSError) as problem:  # the other parts go on
            print(f"{part}: {str(problem).splitlines()[0]}", flush=True)
    print(results.tables.read_text(encoding="utf-8") if results.tables.exists() else "nothing was made")


def images(results: Results, device: torch.device, work: Path, *, tiny: bool) -> None:
    """Images in turn in every variant; what the engine tried on the way."""
    for preset, classes, slices in CASES[:2] if tiny else CASES:
        for name, engine, on_gpu in VARIANTS:
            key = {"part": "images", "preset": preset, "classes": classes, "slices": slices, "variant": name}
            if not results.missing(**key):
                continue
            models = [made_model(preset, stage, classes, tiny=tiny) for stage in (Stage.FINE, Stage.COARSE)]
            started = time.perf_counter()
            segmenter = Segmenter(models[:1], models[1:], engine=engine, device=str(device))
            synchronize(device)
            loading = time.perf_counter() - started
            segmenter._preparing = device if on_gpu else None
            results.add(key, loading=loading, **segmented(segmenter, made_scan(slices, tiny=tiny), device))
            ways = segmenter.engine.ways
            if engine == "auto" and ways is not None:
                results.add({**key, "part": "ways"}, found=list(map(str, ways.found.values())), taken=ways.taken)


def segmented(segmenter: Segmenter, scan: Scan, device: torch.device) -> dict:
    """Seconds of an image by step, the first one, the best of the others; memory; use of the card."""
    find = cascade._find_organs

    def find_and_tell(*arguments: object) -> tuple[BoundingBox, list[str]]:
        find(*arguments)
        return scan.organs, []

    cascade._find_organs = find_and_tell
    try:
        reset_peak(device)
        taken = []
        for _ in range(1 + TRIES):
            started = time.perf_counter()
            segmentation = segmenter.segment(scan.image)
            taken.append((time.perf_counter() - started, segmentation.seconds))
        seconds, steps = min(taken[1:], key=lambda each: each[0])
        peak = peak_mib(device)
        used = used_percent(lambda: segmenter.segment(scan.image), device)
    finally:
        cascade._find_organs = find
    facts = {"seconds": seconds, "first": taken[0][0], "steps": steps, "notes": segmentation.notes}
    return {**facts, "peak_gpu_mib": peak, "peak_rss_mib": peak_rss_mib(), "used_percent": used}


def restoring(results: Results, device: torch.device, work: Path, *, tiny: bool) -> None:
    """Labels on the image's voxels from logits that a label map makes, slab by slab as FINE gives them."""
    for classes, slices in RESTORED:
        key = {"part": "restoring", "classes": classes, "slices": slices}
        if not results.missing(**key):
            continue
        scan, plan = made_scan(slices, tiny=tiny), made_plan("base", Stage.FINE, classes, tiny=tiny)
        grid = prepare(scan.image, "ct").grid(plan)
        region = grid.to_stage(scan.organs)
        assert region is not None
        labels = many_labels(scan.labels_zyx, classes)
        taken = []
        for _ in range(TRIES):
            clock = StepClock(settle=functools.partial(synchronize, device))
            restored_labels(logits_of(labels, region, grid, classes, device), region, grid, plan, None, clock)
            taken.append(clock.seconds["restore"])
        results.add(key, seconds=min(taken), region=list(region.shape_zyx))


def logits_of(
    labels_zyx: np.ndarray, region: BoundingBox, grid: object, classes: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """Logits that are sure of a label map, in slabs of planes; nearest voxels do."""
    inside = grid.to_canonical(region)  # type: ignore[attr-defined]
    picked = [
        np.linspace(low, high - 1, count).round().astype(int)
        for low, high, count in zip(inside.start, inside.stop, region.shape_zyx, strict=True)
    ]
    stage = torch.from_numpy(labels_zyx[np.ix_(*picked)].astype(np.int64)).to(device)
    for planes in stage.split(24):
        yield 10.0 * torch.nn.functional.one_hot(planes, classes).permute(3, 0, 1, 2).to(torch.float32).contiguous()


def many_labels(labels_zyx: np.ndarray, classes: int) -> np.ndarray:
    """So many classes: each organ is cut into pieces along all axes."""
    if classes <= 14:
        return labels_zyx
    found = BoundingBox.of_mask(labels_zyx > 0)
    assert found is not None
    cells = [np.arange(size) * 4 // size for size in labels_zyx.shape]
    cell = cells[0][:, None, None] * 16 + cells[1][:, None] * 4 + cells[2]
    return np.where(labels_zyx > 0, 1 + (labels_zyx.astype(np.int64) * 37 + cell) % (classes - 1), 0)


def uploads(results: Results, device: torch.device, work: Path, *, tiny: bool) -> None:
    """The way of an image to the device: as it was, and in parts through pinned memory."""
    for slices in (100, 300):
        key = {"part": "upload", "slices": slices}
        if not results.missing(**key):
            continue
        array = made_scan(slices, tiny=tiny).image.array_czyx
        turned = array[:, ::-1, ::-1]  # as most NIfTI files lie
        ways: dict[str, Callable[[], object]] = {
            "at once": lambda array=array: torch.from_numpy(array).to(device),
            "in parts": lambda array=array: upload(array, device),
            "turned, at once": lambda turned=turned: torch.from_numpy(np.ascontiguousarray(turned)).to(device),
            "turned, in parts": lambda turned=turned: upload(turned, device),
        }
        results.add(key, mib=array.nbytes / 2**20, seconds={name: best(way, device) for name, way in ways.items()})


def commands(results: Results, device: torch.device, work: Path, *, tiny: bool) -> None:
    """`flaresemi_predict` with one and with five images of 100 slices: what each further one takes."""
    for preset in ("small", "base"):
        workspace, key = work / f"workspace-{preset}", {"part": "command", "preset": preset}
        if not results.missing(**key):
            continue
        for stage in (Stage.FINE, Stage.COARSE):
            model = made_model(preset, stage, 14, tiny=tiny, everywhere=stage is Stage.COARSE)
            save_checkpoint(Workspace(workspace).model("0", stage).final, model)
        seconds = []
        for count in (1, 1, 5):  # the first one keeps what the check of the engine found
            folder, output = work / f"images-{count}", work / "output"
            write_images(folder, count, tiny=tiny)
            shutil.rmtree(output, ignore_errors=True)
            words = ["flaresemi_predict", "-i", folder, "-o", output, "-w", workspace, "--device", device]
            seconds.append(of_process(words, work / "command.log"))
        first, again, five = seconds
        results.add(key, first=first, again=again, five=five, further=(five - again) / 4)


def nnunet(results: Results, device: torch.device, work: Path, *, tiny: bool) -> None:
    """nnU-Net's command, and flaresemi's with the same model of nnU-Net, where nnU-Net is there."""
    key = {"part": "nnunet", "side": "flaresemi"}
    if importlib.util.find_spec("nnunetv2") is None:
        print("nnU-Net v2 cannot be imported here: left out", flush=True)
        return
    if not results.missing(**key):
        return
    from prediction import NETWORK

    task = {**NETWORK, "threads": 4, "folder": str(work / "Dataset001_Bench" / "nnUNetTrainer__plans__3d_fullres")}
    if tiny:
        task |= {"features": [2] * 6, "patch_zyx": [16, 32, 32]}
    subprocess.run(
        [sys.executable, running.ROOT / "benchmarks" / "sides" / "nnunet_side.py", "model", json.dumps(task)],
        check=True,
    )
    folder, output = work / "images-1", work / "output"
    write_images(folder, 1, tiny=tiny)
    sides = {
        "nnU-Net": [
            "nnUNetv2_predict_from_modelfolder", "-i", folder, "-o", output, "-m", task["folder"], "-f", "0",
            "-device", device.type, "--disable_tta", "--disable_progress_bar",
        ],
        "flaresemi": [
            "flaresemi_predict", "-i", folder, "-o", output, "-m", task["folder"], "--no-tta", "--device", device,
        ],
    }  # fmt: skip
    for side, words in sides.items():
        seconds = []
        for _ in range(2):
            shutil.rmtree(output, ignore_errors=True)
            seconds.append(of_process(words, work / "nnunet.log"))
        results.add({**key, "side": side}, seconds=min(seconds))


def made_plan(preset: str, stage: Stage, classes: int, *, tiny: bool) -> StagePlan:
    """The preset's plan for FLARE22, with so many classes."""
    plan = ask(preset)[0].stage(stage)
    network = dataclasses.replace(plan.network, output_channels=classes)
    if tiny:
        network = dataclasses.replace(network, features=(2,) * len(network.features))
        spacing = tuple(8 * size for size in plan.spacing_zyx_mm)
        plan = dataclasses.replace(
            plan, patch_zyx=tuple(2 * size for size in network.divisor_zyx), spacing_zyx_mm=spacing
        )
    return dataclasses.replace(plan, network=network)


def made_model(preset: str, stage: Stage, classes: int, *, tiny: bool, everywhere: bool = False) -> Checkpoint:
    """Weights at random that find background everywhere, or an organ."""
    plan = made_plan(preset, stage, classes, tiny=tiny)
    torch.manual_seed(SEED)
    network = build_network(plan.network)
    with torch.no_grad():
        network.heads[0].bias[int(everywhere)] += 1000
    return Checkpoint(
        plan=plan,
        body="ct",
        channels=("CT",),
        labels=LabelSet(labels=tuple(Label(name=f"organ {index}", value=index) for index in range(1, classes))),
        fold="0",
        iteration=1,
        total_iterations=1,
        weights=network.state_dict(),
    )


@functools.cache
def made_scan(slices: int, *, tiny: bool) -> Scan:
    """A phantom whose voxels are repeated to 512×512 by so many."""
    repeated = (1, 1, 1) if tiny else (10, 8, 8)
    shape = (slices // 10, 64, 64)
    phantom = make_phantom(SEED, shape_zyx=shape, vary=False)
    image, labels = phantom.image_hu, phantom.label
    for axis, count in enumerate(repeated):
        image, labels = (np.repeat(array, count, axis) for array in (image, labels))
    spacing = tuple(extent / size for extent, size in zip(FIELD_MM, image.shape, strict=True))
    grid = SourceGrid(
        geometry=Geometry(shape_zyx=image.shape, spacing_zyx_mm=spacing), axes=(0, 1, 2), flips=(False,) * 3
    )
    return Scan(image=Image(array_czyx=image[None].astype(np.float32), source=grid), labels_zyx=labels)


def write_images(folder: Path, count: int, *, tiny: bool) -> None:
    scan = made_scan(100, tiny=tiny)
    first = folder / "case_0_0000.nii.gz"
    if not first.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_label_map(first, scan.image.array_czyx[0].astype(np.int16), scan.image.source)
    for number in range(1, count):
        running.link_or_copy(first, folder / f"case_{number}_0000.nii.gz")


def of_process(words: Sequence[object], log: Path) -> float:
    """Seconds of a command of this environment, which tells its story in the log."""
    line = [str(Path(sys.executable).parent / str(words[0])), *map(str, words[1:])]
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, check=True)
    return time.monotonic() - started


def best(run: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(1 + TRIES):
        started = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float | None:
    """The most that torch held on the GPU, and what lies outside of its allocator."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_reserved(device) / 2**20 + outside_the_allocator_mib(device)


def used_percent(run: Callable[[], object], device: torch.device) -> float | None:
    """The share of time in which a kernel ran, by nvidia-smi; None where that is not there."""
    program = shutil.which("nvidia-smi")
    if device.type != "cuda" or program is None:
        return None
    query = [
        program,
        f"--id={device.index or 0}",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        "-lms",
        "100",
    ]
    with subprocess.Popen(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(process.stdout or ()), daemon=True)
        reader.start()
        started = time.monotonic()
        while time.monotonic() - started < WATCHED_SECONDS:
            run()
        process.terminate()
        reader.join(5)
    values = [float(line) for line in seen if line.strip().isdigit()]
    return statistics.mean(values[2:]) if len(values) > 4 else None


def tables(rows: list[dict]) -> str:
    """All that was measured, in words and tables."""
    of = {part: [row for row in rows if row["key"]["part"] == part] for part in (*PARTS, "ways")}
    lines = [
        "# Prediction on a GPU, end to end",
        "",
        f"{running.machine()}. Made weights, 512×512 phantoms whose organs' box is known to COARSE; see the script.",
        "",
        "## An image",
        "",
        "Best of three after a first one. Steps: seconds, body / COARSE / FINE / restoring. Times: as fast as before.",
        "",
        "| preset | classes | slices | variant | s | first, s | steps | times | GPU, MiB | RSS, MiB | GPU used, % |",
        "|---|---:|---:|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in of["images"]:
        key = row["key"]
        before = [other["seconds"] for other in of["images"] if other["key"] == {**key, "variant": VARIANTS[0][0]}]
        steps = " / ".join(f"{row['steps'].get(step, 0.0):.2f}" for step in ("body", "coarse", "fine", "restore"))
        faster = f"{before[0] / row['seconds']:.1f}" if before else "–"
        lines.append(
            f"| {key['preset']} | {key['classes']} | {key['slices']} | {key['variant']} | {row['seconds']:.2f} "
            f"| {row['first']:.2f} | {steps} | {faster} | {rounded(row['peak_gpu_mib'])} "
            f"| {row['peak_rss_mib']:.0f} | {rounded(row['used_percent'])} |"
        )
        lines += [f"|  |  |  | {note} | | | | | | | |" for note in row["notes"] if "GPU memory" in note]
    lines += ["", "## What the engine tried", "", "Milliseconds of a window, by the plan's patch.", ""]
    for row in of["ways"]:
        key = row["key"]
        lines.append(
            f"* {key['preset']}, {key['classes']} classes, {key['slices']} slices: taken {', '.join(row['found'])}."
        )
        for taken in row["taken"].values():
            lines.append("  " + "; ".join(f"{way}: {milliseconds:.2f}" for way, milliseconds in taken.items()))
    lines += [
        "",
        "## Restoring",
        "",
        "Logits of `base` FINE that are sure of a label map; copying them is not counted.",
        "",
    ]
    lines += ["| classes | slices | region | s |", "|---:|---:|---|---:|"]
    for row in of["restoring"]:
        region = "×".join(map(str, row["region"]))
        lines.append(f"| {row['key']['classes']} | {row['key']['slices']} | {region} | {row['seconds']:.3f} |")
    lines += [
        "",
        "## The image's way to the device",
        "",
        "| MiB | " + " | ".join(UPLOADS) + " |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in of["upload"]:
        lines.append(f"| {row['mib']:.0f} | " + " | ".join(f"{row['seconds'][name]:.3f} s" for name in UPLOADS) + " |")
    lines += ["", "## Whole commands, 100 slices, 14 classes", "", "COARSE finds the whole body.", ""]
    lines += ["| preset | one image, the first time, s | again, s | five images, s | each further one, s |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for row in of["command"]:
        seconds = " | ".join(f"{row[name]:.1f}" for name in ("first", "again", "five"))
        lines.append(f"| {row['key']['preset']} | {seconds} | {row['further']:.2f} |")
    if of["nnunet"]:
        lines += ["", "## A model of nnU-Net, its windows, no mirroring, one image of 100 slices, whole commands", ""]
        lines += ["| side | s |", "|---|---:|"]
        lines += [f"| {row['key']['side']} | {row['seconds']:.1f} |" for row in of["nnunet"]]
    dates = sorted({row["made"] for row in rows})
    return "\n".join([*lines, "", f"Made: {'; '.join(dates)}.", ""])


UPLOADS = ("at once", "in parts", "turned, at once", "turned, in parts")


def rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
