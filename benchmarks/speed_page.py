"""The tables and pictures of docs/speed.md, from the results in benchmarks/results; measures nothing.

python benchmarks/speed_page.py
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "speed.md"
PICTURES = ROOT / "docs" / "pictures"

#: A block of the page: its name, and what stands in it.
BLOCK = re.compile(r"(<!-- from results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = dict[str, str]


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name, draw in PLOTS.items():
        _picture(PICTURES / f"speed_{name}.svg", draw)


def filled(text: str) -> str:
    """The page with its tables made anew."""
    return BLOCK.sub(lambda found: "\n".join((found[1].rstrip(), *TABLES[found[2]](), found[3])), text)


def tables(name: str) -> list[list[Row]]:
    """The tables of a result, each a list of rows by the names of their columns."""
    found: list[list[Row]] = []
    columns: list[str] | None = None
    for line in (RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            columns = None
        elif columns is None:
            columns = cells
            found.append([])
        elif not re.fullmatch(r"[-:| ]+", line):
            found[-1].append(dict(zip(columns, cells, strict=True)))
    return found


def against_nnunet() -> list[str]:
    """Whole commands on a CPU, beside nnU-Net."""
    (rows,) = tables("prediction")
    measured = [json.loads(line) for line in (RESULTS / "prediction.jsonl").read_text(encoding="utf-8").splitlines()]
    cells = []
    for row in rows:
        own = [each for each in measured if (each["scan"], each["side"]) == (row["scan"], row["side"])]
        busy = f"{own[-1]['cpu_seconds'] / own[-1]['seconds']:.1f}" if own else "–"
        memory = f"{int(row['peak RSS, MiB']) / 1024:.1f} GiB"
        cells.append(
            (row["scan"], row["side"], f"{row['seconds']} s", row["times as fast"], memory, row["share"], busy)
        )
    head = ("scan", "what", "time", "times as fast", "peak memory", "share", "cores busy, of 2")
    return _table(head, cells, "llrrrrr")


def slices() -> list[str]:
    """The `small` preset by slices."""
    columns = ("slices", "whole command, s", "peak memory, MiB", "input + output, MiB", "the rest, MiB")
    return _table(columns, [[row[each] for each in columns] for row in tables("scan_size")[0]], "rrrrr")


def classes() -> list[str]:
    """Every command by the number of organs."""
    rows = tables("many_classes")[0]
    return _table(list(rows[0]), [list(row.values()) for row in rows], "r" * len(rows[0]))


def parts() -> list[str]:
    """What grows with the number of organs."""
    rows = tables("class_parts")[0]
    return _table(list(rows[0]), [list(row.values()) for row in rows], "lrrrr")


def dice_cost() -> list[str]:
    """What windows and steps cost, on real and synthetic scans."""
    cells = []
    for name, data in (("fast_path_openkbp", "openkbp, one stage"), ("fast_path_phantoms", "phantoms, two stages")):
        for row in tables(name)[0]:
            change = row["against slow"] if row[""] != "slow" else "–"
            cells.append((data, row[""], row["mean Dice"], change, row["worst organ, Dice"], row["seconds, all cases"]))
    head = ("data", "way", "mean Dice", "against slow", "worst organ", "seconds, all cases")
    return _table(head, cells, "llrrrr")


def gpu() -> list[str]:
    """Steps and windows on a GPU, bf16."""
    text = (RESULTS / "gpu_step.md").read_text(encoding="utf-8").split("## Again")[0]
    cells = []
    for part in text.split("\n## ")[1:]:
        name, _, patch = part.splitlines()[0].partition(": ")
        for line in part.splitlines():
            variant, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
            if variant.endswith("kernels by rule") and variant.startswith("bf16"):
                step, speed, _, memory, window, many, taken = numbers
                layout = variant.split(", ")[1]
                cells.append((name, patch.split(",")[0], layout, step, speed, memory, window, many, taken))
    head = ("preset", "patches", "bf16", "step, ms", "patches/s", "MiB", "4 windows, ms", "windows/s", "MiB ")
    return _table(head, cells, "lllrrrrrr")


def training() -> list[str]:
    """The whole training loop on a CPU."""
    columns = ("side", "patches/s (median, range)", "times as fast", "peak RSS, MiB", "with workers")
    return _table(columns, [[row[each] for each in columns] for row in tables("training_throughput")[0]], "lrrrr")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], sides: str) -> list[str]:
    rule = "|".join("---:" if side == "r" else "---" for side in sides)
    return [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]


TABLES: dict[str, Callable[[], list[str]]] = {
    each.__name__: each for each in (against_nnunet, slices, classes, parts, dice_cost, gpu, training)
}


def _pairs(cell: str) -> tuple[float, float] | None:
    """Seconds and GiB of `37 s, 1.6`."""
    found = re.fullmatch(r"([\d.]+) s, ([\d.]+)", cell)
    return (float(found[1]), float(found[2])) if found else None


def _by_slices(time, memory) -> None:
    rows = tables("scan_size")[0]
    count = [int(row["slices"]) for row in rows]
    time.plot(count, [float(row["whole command, s"]) for row in rows], "o-", label="small, whole command")
    memory.plot(count, [float(row["peak memory, MiB"]) / 1024 for row in rows], "o-", label="small, peak")
    memory.plot(count, [float(row["input + output, MiB"]) / 1024 for row in rows], "o--", label="image and labels")
    _named(time, memory, "slices of 512×512")


def _by_classes(time, memory) -> None:
    rows = tables("many_classes")[0]
    for name in ("prepare", "predict", "evaluate"):
        found = [(int(row["classes"]), *pair) for row in rows if (pair := _pairs(row.get(name, "")))]
        if found:
            count, seconds, gib = zip(*found, strict=True)
            time.plot(count, seconds, "o-", label=name)
            memory.plot(count, gib, "o-", label=name)
    _named(time, memory, "organs, 300×512×512, small, 1 thread")


def _by_part(time, memory) -> None:
    rows = {row["part"]: row for row in tables("class_parts")[0]}
    shown = ("training loss", "windows to labels at once", "windows to labels in slabs")
    for name in (each for each in shown if each in rows):
        own = ((int(count), _pairs(rows[name][count])) for count in list(rows[name])[1:])
        found = [(count, *pair) for count, pair in own if pair]
        count, seconds, gib = zip(*found, strict=True)
        time.plot(count, seconds, "o-", label=name)
        memory.plot(count, gib, "o-", label=name)
    _named(time, memory, "organs, one part of the work, 1 thread")


def _by_batch(time, memory) -> None:
    text = (RESULTS / "gpu_step.md").read_text(encoding="utf-8")
    first, again = text.split("## Again")
    base = [part.split("### base" if part is again else "## base")[1] for part in (first, again)]
    for layout in ("contiguous", "channels-last"):
        own = [re.search(rf"\| bf16, {layout}, kernels by rule \|(.*)\|", part) for part in reversed(base)]
        numbers = [[float(cell) for cell in found[1].split("|")] for found in own if found]
        time.plot([1, 4], [each[4] / count for each, count in zip(numbers, (1, 4), strict=True)], "o-", label=layout)
        memory.plot([1, 4], [each[6] / 1024 for each in numbers], "o-", label=layout)
    _named(time, memory, "windows of `base` in a pass, bf16, H200")
    time.set_ylabel("ms a window")


def _named(time, memory, below: str) -> None:
    for axes, side in ((time, "seconds"), (memory, "GiB")):
        axes.set(xlabel=below, ylabel=side)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


PLOTS = {"slices": _by_slices, "classes": _by_classes, "parts": _by_part, "batch": _by_batch}


def _picture(path: Path, draw: Callable) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "flaresemi"  # the same numbers are the same file
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    draw(*figure.subplots(1, 2))
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
