"""How often are the files of a dataset read, and what does that cost, from scans to prepared cases?

Phantoms of 512×512 by about 100 slices go through flaresemi_plan_and_preprocess in one process, in which every read
and every decompressed stream of their files is counted. `--before CHECKOUT` does the same with the package of an older
checkout, and compares what both have written. Result: results/reading.md.
"""

import builtins
import collections
import functools
import io
import json
import os
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import running

SIZE = (100, 512, 512)
KINDS = ("labeled_image", "labeled_mask", "unlabeled_image")


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--labeled", type=int, default=50)
    parser.add_argument("--unlabeled", type=int, default=50)
    parser.add_argument("--before", type=Path, help="folder of an older checkout")
    options = parser.parse_args()
    bench = running.Bench("reading", options.work)
    data = bench.work / "data"
    if "data" not in bench.steps:
        from flaresemi.phantom.dataset import write_phantom_dataset

        write_phantom_dataset(data, labeled=options.labeled, unlabeled=options.unlabeled, test=0, size=SIZE)
        bench.record("data")
    checkouts = {"after": running.ROOT} | ({"before": options.before.resolve()} if options.before else {})
    for name in sorted(checkouts, reverse=True):
        if name not in bench.steps:
            words = [sys.executable, __file__, str(data), str(bench.work / name)]
            environment = os.environ | {"PYTHONPATH": str(checkouts[name])}
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            made = running.when_and_what() if name == "after" else "an older checkout"
            bench.record(name, **facts, seconds=facts["wall"], command="flaresemi_plan_and_preprocess", made=made)
    differ = compare(bench.work / "before", bench.work / "after") if options.before else None
    bench.report(text(bench.steps, options.labeled, options.unlabeled, differ))


def text(steps: dict[str, dict], labeled: int, unlabeled: int, differ: list[str] | None) -> str:
    columns = [name for name in ("before", "after") if name in steps]
    files = dict(zip(KINDS, (labeled, labeled, unlabeled), strict=True))
    rows = [
        ("wall time, s", lambda run: f"{run['wall']:.1f}"),
        ("processor time, s", lambda run: f"{run['processor']:.1f}"),
        ("peak memory, MiB", lambda run: f"{run['peak_mib']:.0f}"),
        ("MiB read of the dataset", lambda run: f"{sum(run['bytes'].values()) / 2**20:.0f}"),
    ]
    for kind, count in files.items():
        rows.append((f"a file of {kind}: decompressed", lambda run, k=kind, n=count: f"{run['streams'][k] / n:g}"))
        rows.append(
            (f"a file of {kind}: read, times its size", lambda run, k=kind: f"{run['bytes'][k] / run['sizes'][k]:.2f}")
        )
    lines = [
        f"# Reading {labeled} labeled and {unlabeled} unlabeled scans of 512×512 by about {SIZE[0]} slices",
        "",
        f"| | {' | '.join(columns)} |",
        "|---|" + "---:|" * len(columns),
        *(f"| {name} | {' | '.join(show(steps[column]) for column in columns)} |" for name, show in rows),
        "",
    ]
    if differ is not None:
        lines.append(f"Files of the workspace that differ: {', '.join(differ) or 'none'}.")
    return "\n".join(lines)


def compare(one: Path, other: Path) -> list[str]:
    """Names of the files that two workspaces do not have alike."""
    contents = [
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (one, other)
    ]
    names = sorted(contents[0].keys() | contents[1].keys())
    return [name for name in names if contents[0].get(name) != contents[1].get(name)]


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    def __init__(self, path: Any, counts: collections.Counter, kind: str, opener: Any) -> None:
        super().__init__(path, "rb", opener=opener)
        self._count = functools.partial(self._add, counts, kind)

    @staticmethod
    def _add(counts: collections.Counter, kind: str, number: int | None) -> None:
        counts[kind] += number or 0

    def readinto(self, buffer: Any) -> int | None:
        number = super().readinto(buffer)
        self._count(number)
        return number

    def read(self, size: int | None = -1) -> bytes | None:
        data = super().read(-1 if size is None else size)
        self._count(len(data or b""))
        return data

    def readall(self) -> bytes | None:
        data = super().readall()
        self._count(len(data or b""))
        return data


def count(data: Path, workspace: Path) -> None:
    """Runs the command in this process and prints what it took as a line of JSON."""
    read: collections.Counter = collections.Counter()
    streams: collections.Counter = collections.Counter()
    opening, inflating = builtins.open, zlib.decompressobj
    latest = ""

    def counted_open(file: Any, mode: str = "r", *rest: Any, **settings: Any) -> Any:
        nonlocal latest
        kind = Path(file).parent.name if isinstance(file, str | Path) else ""
        if mode != "rb" or kind not in KINDS:
            return opening(file, mode, *rest, **settings)
        latest = kind
        return io.BufferedReader(Counted(file, read, kind, settings.get("opener")))

    class Inflating:
        """A stream that counts when it comes to its end: headers do not."""

        def __init__(self, *words: Any, **settings: Any) -> None:
            self._stream, self._kind = inflating(*words, **settings), latest

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

        def decompress(self, *words: Any) -> bytes:
            before = self._stream.eof
            result = self._stream.decompress(*words)
            streams[self._kind] += self._stream.eof and not before
            return result

    builtins.open, zlib.decompressobj = counted_open, Inflating  # type: ignore[assignment, misc]
    from flaresemi.cli.plan_and_preprocess import main as command

    began = time.perf_counter(), time.process_time()
    code = command(["-d", str(data), "-w", str(workspace), "--preset", "small", "--workers", "1"])
    if code:
        raise SystemExit(code)
    facts = {
        "wall": time.perf_counter() - began[0],
        "processor": time.process_time() - began[1],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes": read,
        "streams": streams,
        "sizes": {kind: sum(path.stat().st_size for path in (data / kind).iterdir()) for kind in KINDS},
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        count(*map(Path, sys.argv[1:]))
    else:
        main()
