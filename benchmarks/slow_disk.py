"""Patches of prepared CTs from a slow disk: plain memory maps against blosc2, bytes and time.

Prepared cases as FLARE22's `base` plan has them (100×350×450 voxels at FINE's spacing, float16, phantoms with noise of
their own), more than the page cache is let keep: before each patch, what the cache has of its case is dropped, as if
the cases were 2000 and the memory next to nothing. Patches of 48×160×256 from random cases at random places, read by
one process. The disk is throttled by a cgroup (v1, blkio; needs root): bytes and reads a second. blosc2 as nnU-Net
stores its cases: zstd, level 8, blocks that fit the first cache and chunks that fit the last.

Then a training (small network, phantoms of 48³ voxels) with and without a throttle of its reads, in 900 MB of memory.
Result: results/slow_disk.md.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import running

from flaresemi.files import read_box

SHAPE, PATCH = (100, 350, 450), (48, 160, 256)
BLOCKS, CHUNKS = (16, 16, 32), (48, 96, 128)
SECONDS, LEAST = 8.0, 10
#: Bytes and reads a second; 0: no limit.
DISKS = {
    "this machine's disk": (0, 0),
    "a network share, 110 MB/s, 1000 reads/s": (110_000_000, 1000),
    "a disk of 150 MB/s, 250 reads/s": (150_000_000, 250),
}
BLKIO, MEMORY = Path("/sys/fs/cgroup/blkio/flaresemi_slow"), Path("/sys/fs/cgroup/memory/flaresemi_slow")

#: Patches a second of `base` on an H200.
NEED = 29.0

Reader = Callable[[Path, tuple[int, int, int]], np.ndarray]


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--reading-only", action="store_true", help="no training")
    options = parser.parse_args()
    bench = running.Bench("slow_disk", options.work)
    folder = bench.work / "cases"
    if "cases" not in bench.steps:
        bench.record("cases", **make(folder, options.cases))
    ahead = Path(f"/sys/dev/block/{major_minor(folder)}/queue/read_ahead_kb")
    bench.record("disk", read_ahead_kib=int(ahead.read_text(encoding="utf-8")))
    for disk, limits in DISKS.items():
        for name in READERS:
            step = f"{disk}: {name}"
            if step not in bench.steps:
                bench.record(step, **measured(folder, name, limits))
                print(step, bench.steps[step], flush=True)
                report(bench)
    for disk, limits in DISKS.items() if not options.reading_only else ():
        if f"training, {disk}" not in bench.steps:
            bench.record(f"training, {disk}", **training(bench, limits))
            report(bench)
    report(bench)


def make(folder: Path, count: int) -> dict[str, float]:
    """Cases in both formats; what they take, and the seconds of compressing."""
    import blosc2

    from flaresemi.phantom import make_phantom

    folder.mkdir(exist_ok=True)
    seconds = {"npy": 0.0, "b2nd": 0.0}
    base = make_phantom(3, shape_zyx=(100, 384, 512), vary=True).image_hu[:, 17:367, 31:481].astype(np.float32)
    for number in range(count):
        rng = np.random.default_rng(number)
        noise = rng.normal(0, 12, SHAPE).astype(np.float32)  # what a phantom's scanner adds is of each scan's own
        image = ((np.roll(base, number * 7, axis=1 + number % 2) + noise - 80) / 140).astype(np.float16)[None]
        started = time.perf_counter()
        np.save(folder / f"{number}.npy", image)
        seconds["npy"] += time.perf_counter() - started
        started = time.perf_counter()
        settings = {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1}
        blosc2.asarray(
            image,
            chunks=(1, *CHUNKS),
            blocks=(1, *BLOCKS),
            cparams=settings,
            urlpath=str(folder / f"{number}.b2nd"),
            mode="w",
        )
        seconds["b2nd"] += time.perf_counter() - started
    os.sync()
    sizes = {kind: sum(path.stat().st_size for path in folder.glob(f"*.{kind}")) / count / 1e6 for kind in seconds}
    return {
        f"{kind}_{what}": value
        for kind in seconds
        for what, value in (("mb", sizes[kind]), ("s", seconds[kind] / count))
    }


def plain(path: Path, start: tuple[int, int, int]) -> np.ndarray:
    array = np.lib.format.open_memmap(path.with_suffix(".npy"), mode="r")
    z, y, x = start
    return array[:, z : z + PATCH[0], y : y + PATCH[1], x : x + PATCH[2]].astype(np.float32)


def told_ahead(path: Path, start: tuple[int, int, int]) -> np.ndarray:
    """As flaresemi reads a patch: after the system has been told of all rows that come."""
    array = np.lib.format.open_memmap(path.with_suffix(".npy"), mode="r")
    return read_box(array, tuple(slice(first, first + size) for first, size in zip(start, PATCH, strict=True))).astype(
        np.float32
    )


def compressed(path: Path, start: tuple[int, int, int]) -> np.ndarray:
    import blosc2

    array = blosc2.open(str(path.with_suffix(".b2nd")), mode="r", mmap_mode="r", dparams={"nthreads": 1})
    z, y, x = start
    return array[:, z : z + PATCH[0], y : y + PATCH[1], x : x + PATCH[2]].astype(np.float32)


READERS: dict[str, Reader] = {
    "memory maps": plain,
    "memory maps, told ahead": told_ahead,
    "blosc2": compressed,
}


def major_minor(path: Path) -> str:
    number = os.stat(path).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


@contextlib.contextmanager
def cgroup(place: Path, **limits: object) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    for name, value in limits.items():
        (place / name.replace("__", ".")).write_text(str(value))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()


def measured(folder: Path, name: str, limits: tuple[int, int]) -> dict[str, float]:
    """Seconds and bytes of a patch, in a process whose reads are throttled."""
    device = major_minor(folder)
    given = {"blkio__throttle__read_bps_device": limits[0], "blkio__throttle__read_iops_device": limits[1]}
    with cgroup(BLKIO, **{key: f"{device} {value}" for key, value in given.items()}):
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=read, args=(folder, name, theirs))
        process.start()
        found = ours.recv()
        process.join()
    return found


def read(folder: Path, name: str, tell: object) -> None:
    reader, rng = READERS[name], np.random.default_rng(0)
    cases = sorted(folder.glob("*.npy"))
    reader(cases[0], (0, 0, 0))  # imports
    (BLKIO / "cgroup.procs").write_text(str(os.getpid()))
    before, started, taken, cpu = served(), time.perf_counter(), 0.0, time.process_time()
    patches = 0
    while patches < LEAST or time.perf_counter() - started < SECONDS:
        path = cases[int(rng.integers(len(cases)))]
        start = tuple(int(rng.integers(whole - part + 1)) for whole, part in zip(SHAPE, PATCH, strict=True))
        forget(path.with_suffix(".b2nd" if name == "blosc2" else ".npy"))
        began = time.perf_counter()
        reader(path, start)
        taken += time.perf_counter() - began
        patches += 1
    after = served()
    began = time.perf_counter()
    for _ in range(10):
        reader(path, start)  # from the page cache
    cached = (time.perf_counter() - began) / 10
    tell.send(  # type: ignore[attr-defined]
        {
            "ms": 1000 * taken / patches,
            "cached_ms": 1000 * cached,
            "cpu_ms": 1000 * (time.process_time() - cpu) / (patches + 10),
            "mb": (after[0] - before[0]) / patches / 1e6,
            "reads": (after[1] - before[1]) / patches,
            "patches": patches,
        }
    )


def forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def served() -> tuple[int, int]:
    """Bytes and reads of the cgroup so far."""
    found = []
    for name in ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"):
        lines = (BLKIO / name).read_text().splitlines()
        found.append(sum(int(line.split()[-1]) for line in lines if " Read " in line))
    return found[0], found[1]


def training(bench: running.Bench, limits: tuple[int, int]) -> dict[str, object]:
    """Patches a second of a training that may keep 600 MB, its caches among them."""
    data, workspace = bench.work / "demo" / "data", bench.work / "workspace"
    size = ("--size", "tiny", "--labeled", 30, "--unlabeled", 0, "--test", 0, "--seed", 5, "--workers", 1)
    bench.command("data", "flaresemi_demo", "-o", bench.work / "demo", "--only-data", *size)
    words = ("-d", data, "-w", workspace, "--stages", "one", "--preset", "small", "--workers", 1)
    bench.command("plan", "flaresemi_plan_and_preprocess", *words)
    for path in (workspace / "preprocessed").rglob("*.npy"):
        forget(path)
    device = major_minor(bench.work)
    given = {"blkio__throttle__read_bps_device": limits[0], "blkio__throttle__read_iops_device": limits[1]}
    with (
        cgroup(BLKIO, **{key: f"{device} {value}" for key, value in given.items()}),
        cgroup(MEMORY, memory__limit_in_bytes=900 * 2**20),
    ):
        join = f"echo $$ > {MEMORY}/cgroup.procs; "
        program = Path(sys.executable).parent / "flaresemi_train"
        train = f"{program} FINE 0 -d {data} -w {workspace} --device cpu --loader-workers 0 --profile 20"
        script = f"{join} echo $$ > {BLKIO}/cgroup.procs; exec {train}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, encoding="utf-8", check=False)
    line = next((line for line in done.stdout.splitlines() if "patches/s" in line), done.stderr[-300:])
    waits = next((line for line in done.stdout.splitlines() if "waiting for data" in line), "")
    return {"line": line.strip(), "waiting": " ".join(waits.split())}


def report(bench: running.Bench) -> None:
    cases = bench.steps["cases"]
    lines = [
        "# Patches of prepared CTs from a slow disk",
        "",
        f"A case of {'×'.join(map(str, SHAPE))} voxels takes {cases['npy_mb']:.1f} MB as it is,",
        f"{cases['b2nd_mb']:.1f} MB by blosc2 ({cases['npy_mb'] / cases['b2nd_mb']:.2f} times smaller;",
        f"{cases['b2nd_s']:.1f} s to write instead of {cases['npy_s']:.1f}).",
        f"Patches of {'×'.join(map(str, PATCH))} from random cases; nothing of them is in the page cache, but for the",
        f"last column. One process, one thread. The system reads {bench.steps['disk']['read_ahead_kib']} KiB ahead.",
        "Told ahead: how flaresemi reads since this was measured.",
        "",
        "| disk | stored as | a patch, ms | patches/s | MB read of the disk | reads of the disk | processor, ms "
        "| from the cache, ms |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for disk in DISKS:
        for name in READERS:
            if step := bench.steps.get(f"{disk}: {name}"):
                lines.append(
                    f"| {disk} | {name} | {step['ms']:.0f} | {1000 / step['ms']:.1f} | {step['mb']:.1f} "
                    f"| {step['reads']:.0f} | {step['cpu_ms']:.0f} | {step['cached_ms']:.1f} |"
                )
    lines += [
        "",
        "A patch fills 3.9 MB; its rows lie in 48 planes of 144 KB with gaps of 171 KB. The system reads whole pages.",
        f"`base` takes {NEED:.0f} patches a second on an H200 (gpu_step.md):",
        "",
        "| stored as | MB/s that it has to be given | patches/s by 110 MB/s | of the need |",
        "|---|---:|---:|---:|",
    ]
    for name in READERS:
        if step := bench.steps.get(f"{list(DISKS)[1]}: {name}"):
            given = 110 / step["mb"]
            lines.append(f"| {name} | {NEED * step['mb']:.0f} | {given:.1f} | {min(given / NEED, 1):.0%} |")
    lines += [
        "",
        "So a share of one gigabit holds an H200 up in any format; a disk of 250 MB/s, or 64 GB of memory for the",
        "cache, does not. Cases are drawn at random in every step: with 4 GB for the cache of 62 GB of cases, 6 % of",
        "the patches are there already. Loader processes read side by side: what a read waits for counts once, its",
        "bytes always.",
        "",
        "On a disk that reads 8 MiB ahead (2026-11-27, the same machine) memory maps took 33 ms and 20.7 MB in 23",
        "reads, told ahead 10 ms and 7.1 MB in 50, blosc2 42 ms and 19.6 MB in 21. With so much read ahead, and where",
        "the number of reads is limited (150 a second), being told is slower: 331 ms instead of 150, blosc2 169.",
    ]
    trained = {disk: bench.steps[f"training, {disk}"] for disk in DISKS if f"training, {disk}" in bench.steps}
    if trained:
        lines += [
            "",
            "A training of a small network on the processor, in 900 MB:",
            "",
            "| disk | | waiting |",
            "|---|---|---|",
        ]
        lines += [f"| {disk} | {step['line']} | {step['waiting']} |" for disk, step in trained.items()]
    bench.report("\n".join(lines))


if __name__ == "__main__":
    main()
