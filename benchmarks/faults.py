"""Faults of many kinds at random moments of every command: is anything lost, and does the next start go on?

Three of the kinds are generic: any file that a command left is exchanged for the same file of another dataset with the
same names, any output is somebody else's file already, any number of any record is out of every range.

A phantom dataset of 48³ voxels with tiny networks. Each injection runs a command with a fault, then once more without;
it counts as lossless when the first ended as it should (killed, or exit code 2 and one clear message), the second with
exit code 0, and the files are those that one undisturbed start leaves (weights, label maps and prepared cases bit for
bit, records but for their times). Disks that are full and folders that are read-only are mounted, which takes root.
Result: results/faults.md.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import running

sys.path.append(str(running.ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

from flaresemi.locking import working_alone
from flaresemi.phantom import write_phantom_dataset
from flaresemi.workspace import Workspace
from tests.faults.injection import End, differences, listing, read_only, run_command, small_disk
from tests.made_workspace import shrink

PLAN = ("plan_and_preprocess", "--preset", "small", "--stages", "one", "--workers", "1")
TRAIN = (
    "train", "FINE", "0", "--iterations", "8", "--iterations-per-epoch", "2", "--validations", "2", "--device", "cpu",
    "--precision", "fp32", "--loader-workers", "0", "--checkpoint-minutes", "0", "--continue",
)  # fmt: skip
PREDICT = ("predict", "--device", "cpu", "--precision", "fp32", "--engine", "torch", "--continue")
ROUND = ("semi_round", "--fold", "0", "--rounds", "1", "--select", "case", "--best-share", "1.0", "--device", "cpu",
         "--precision", "fp32")  # fmt: skip

Words = tuple[str | Path, ...]


@dataclasses.dataclass
class Lab:
    """What the commands left without a fault, and a place for each injection.

    Attributes:
        root: Folder of work.
        cpu_seconds: Of every command.
    """

    root: Path
    seed: int = 7
    cpu_seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def twin(self) -> "Lab":
        """The same of another dataset, whose cases have the same names."""
        return Lab(self.root / "twin", seed=8)

    @property
    def place(self) -> Path:
        """Where the command of an injection writes."""
        return self.root / "place"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def before(self, command: str) -> Path | None:
        """What a command finds; None: nothing."""
        return {"train": self.root / "small", "semi_round": self.root / "trained"}.get(command)

    def after(self, command: str) -> Path:
        """What it leaves."""
        names = {"plan_and_preprocess": "planned", "train": "trained", "predict": "predicted", "semi_round": "round"}
        return self.root / names[command]

    def words(self, command: str, place: Path, data: Path | None = None) -> Words:
        usual = {words[0]: words for words in (PLAN, TRAIN, PREDICT, ROUND)}[command]
        data = data or self.data
        if command == "predict":
            return (*usual, "-i", data / "labeled_image", "-m", self.root / "trained" / "models", "-o", place)
        return (*usual, "-d", data, "-w", place)

    def run(
        self,
        command: str,
        place: Path,
        kill_after: float | None = None,
        data: Path | None = None,
        more: Words = (),
        kill_worker_after: float | None = None,
    ) -> End:
        words = (*self.words(command, place, data), *more)
        return run_command(words, self.root / "log", kill_after=kill_after, kill_worker_after=kill_worker_after)

    def fresh(self, command: str) -> None:
        """An empty place, or one with what the command finds."""
        shutil.rmtree(self.place, ignore_errors=True)
        found = self.before(command)
        if found is not None:
            shutil.copytree(found, self.place)

    def prepare(self, bench: running.Bench) -> None:
        """Runs every command once without a fault."""
        if self.seed == 7:
            self.twin.root.mkdir(exist_ok=True)
            self.twin.prepare(bench)
        whole = "whole" if self.seed == 7 else "whole twin"
        if whole not in bench.steps:
            for path in self.root.glob("[dspr]*"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else None
            write_phantom_dataset(self.data, labeled=3, unlabeled=2, test=1, size=(40, 48, 48), seed=self.seed)
            used = {}
            for command in COMMANDS:
                found = self.before(command)
                if command == "train":
                    shutil.copytree(self.root / "planned", self.root / "small")
                    shrink(self.root / "small")
                if found is not None:
                    shutil.copytree(found, self.after(command))
                end = self.run(command, self.after(command))
                if end.code:
                    raise SystemExit(end.said)
                used[command] = end.cpu_seconds
            bench.record(whole, cpu_seconds=used)
        self.cpu_seconds = bench.steps[whole]["cpu_seconds"]

    def lost(self, command: str) -> list[str]:
        """What differs from an undisturbed start; what killed writers left beside label maps is no loss."""
        return [name for name in differences(self.after(command), self.place) if ".partial-" not in name]


COMMANDS = ("plan_and_preprocess", "train", "predict", "semi_round")

#: A fault takes the laboratory, a command and a source of chance; it gives what it should have said, and what it said.
Fault = Callable[[Lab, str, random.Random], str]


def killed(lab: Lab, command: str, chance: random.Random) -> str:
    end = lab.run(command, lab.place, kill_after=chance.uniform(0, 0.95) * lab.cpu_seconds[command])
    return "" if end.code == -signal.SIGKILL else f"ended with {end.code}"


def worker_killed(lab: Lab, command: str, chance: random.Random) -> str:
    """One of the processes that prepare cases or patches gets SIGKILL; too late, nothing is to be seen of it."""
    more = {"plan_and_preprocess": ("--workers", "2"), "train": ("--loader-workers", "1")}[command]
    end = lab.run(command, lab.place, more=more, kill_worker_after=chance.uniform(0, 4))
    return "" if end.code == 0 else _clear(end, "a process", "a worker")


def disk_full(lab: Lab, command: str, chance: random.Random) -> str:
    """A disk with room for a random part of what is written; then more room."""
    with small_disk(lab.place.with_name("disk"), 65536) as mounted:
        if not mounted:
            raise SystemExit("mounting a disk takes root")
        disk = lab.place.with_name("disk")
        found = lab.before(command)
        if found is not None:
            shutil.copytree(found, disk / "place")
        needed = _kib(lab.after(command)) - (_kib(found) if found else 0)
        free = chance.uniform(0.0, 0.8) * needed
        with open(disk / "ballast", "wb") as ballast:
            space = shutil.disk_usage(disk).free
            ballast.write(bytes(max(space - int(1024 * free), 0)))
        trouble = _clear(lab.run(command, disk / "place"), "no space left", "not enough disk space")
        (disk / "ballast").unlink()
        again = lab.run(command, disk / "place")
        if again.code:
            trouble = trouble or f"second start: {again.said[-300:]}"
        shutil.rmtree(lab.place, ignore_errors=True)
        shutil.copytree(disk / "place", lab.place)
    return trouble


def cut_off(lab: Lab, command: str, chance: random.Random) -> str:
    """Killed, and one of the files that were there by then loses its end; what the message names is put right."""
    lab.run(command, lab.place, kill_after=chance.uniform(0.3, 0.95) * lab.cpu_seconds[command])
    files = sorted(path for path in lab.place.rglob("*") if path.is_file() and ".partial-" not in path.name)
    files = [path for path in files if not ({"logs", "lists"} & set(path.parts))]
    if not files:
        return ""
    path = chance.choice(files)
    cut = int(chance.random() * path.stat().st_size)
    with open(path, "r+b") as file:
        file.truncate(cut)
    end = lab.run(command, lab.place)
    found, inside = lab.before(command), path.relative_to(lab.place)
    if end.code == 0:
        if found is not None and (found / inside).exists() and path.stat().st_size == cut:  # it was not needed
            shutil.copyfile(found / inside, path)
        return ""
    trouble = _clear(end, path.name, path.parent.name)
    path.unlink()
    whole = (found or lab.after(command)) / inside
    if whole.exists():
        shutil.copyfile(whole, path)
    return trouble and f"{inside}: {trouble}"


def exchanged(lab: Lab, command: str, chance: random.Random) -> str:
    """Killed or complete, and a file that is there is that of another dataset; afterwards it is put back.

    Refused, or made again, or not needed: what is used without a word shows in what is left.
    """
    lab.run(command, lab.place, kill_after=chance.uniform(0.3, 1.5) * lab.cpu_seconds[command])
    other = lab.twin.after(command)
    files = {path: other / path.relative_to(lab.place) for path in _written(lab.place)}
    files = {path: twin for path, twin in files.items() if twin.is_file() and twin.read_bytes() != path.read_bytes()}
    if not files:
        return ""
    path = chance.choice(sorted(files))
    return _with_content(lab, command, path, files[path].read_bytes())


def wild_number(lab: Lab, command: str, chance: random.Random) -> str:
    """Killed or complete, and a number of a record is none that makes sense; afterwards it is put back."""
    lab.run(command, lab.place, kill_after=chance.uniform(0.3, 1.5) * lab.cpu_seconds[command])
    records = [path for path in _written(lab.place) if path.suffix == ".json"]
    if not records:
        return ""
    path = chance.choice(records)
    content = json.loads(path.read_text(encoding="utf-8"))
    places = list(_numbers(content))
    if not places:
        return ""
    holder, key = chance.choice(places)
    holder[key] = chance.choice([float("nan"), float("inf"), float("-inf"), -1e300, 1e300])
    return _with_content(lab, command, path, json.dumps(content).encode())


def foreign_output(lab: Lab, command: str, chance: random.Random) -> str:
    """Somebody else's file stands where the command wants to write; afterwards it is moved away."""
    found = lab.before(command)
    outputs = [path.relative_to(lab.after(command)) for path in _written(lab.after(command))]
    inside = chance.choice([name for name in outputs if found is None or not (found / name).exists()])
    path = lab.place / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"years of work")
    end = lab.run(command, lab.place)
    if not path.is_file() or path.read_bytes() != b"years of work":
        return f"{inside} was replaced; exit code {end.code}"
    path.unlink()
    for folder in path.relative_to(lab.place).parents:  # those that were made for it
        if not any((lab.place / folder).iterdir()) and lab.place / folder != lab.place:
            (lab.place / folder).rmdir()
    return _clear(end, "did not write", "no record", "no workspace", path.name, path.parent.name)


def _written(place: Path) -> list[Path]:
    """The files of a place but for logs and what is not finished."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and ".partial-" not in path.name)
    return [path for path in files if not ({"logs", "lists"} & set(path.relative_to(place).parts))]


def _numbers(content: Any) -> Iterator[tuple[Any, Any]]:
    """Where the numbers of parsed JSON stand: the list or dict, and the index or key."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield content, key
        yield from _numbers(value)


def _with_content(lab: Lab, command: str, path: Path, content: bytes) -> str:
    """Runs a command while a file holds something else; what is wrong with how it ended."""
    before = path.read_bytes()
    path.write_bytes(content)
    end = lab.run(command, lab.place)
    is_untouched = path.is_file() and path.read_bytes() == content
    if is_untouched:
        path.write_bytes(before)
    if end.code == 0:
        return ""
    trouble = _clear(end, *path.relative_to(lab.place).parts, path.stem)
    return trouble and f"{path.relative_to(lab.place)}: {trouble}"


def read_only_data(lab: Lab, command: str, _: random.Random) -> str:
    before = listing(lab.data)
    with read_only(lab.data, lab.root / "read_only" / "data") as mounted:
        if not mounted:
            raise SystemExit("mounting a folder read-only takes root")
        end = lab.run(command, lab.place, data=lab.root / "read_only" / "data")
    changed = listing(lab.data) != before
    return end.said[-300:] if end.code else "the data have changed" if changed else ""


def unreadable(lab: Lab, command: str, chance: random.Random) -> str:
    """A raw image of a copy of the data loses its end; then it is put back."""
    data = lab.root / "own" / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(lab.data, data)
    image = chance.choice(sorted((data / "labeled_image").iterdir()))
    content, times = image.read_bytes(), image.stat()
    image.write_bytes(content[: int(chance.random() * len(content))])
    end = lab.run(command, lab.place, data=data)
    image.write_bytes(content)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    return "" if end.code == 0 and command == "train" else _clear(end, image.name, image.name.split("_0000")[0])


def clock_jumps(lab: Lab, command: str, chance: random.Random) -> str:
    """Killed; then all files are of another year."""
    killed(lab, command, chance)
    for path in lab.place.rglob("*"):
        second = chance.choice((0, 315532800, 4102444800))
        os.utime(path, (second, second))
    return ""


def moved(lab: Lab, command: str, chance: random.Random) -> str:
    """Killed; then the place has another name."""
    killed(lab, command, chance)
    if lab.place.exists():
        other = lab.root / "somewhere else"
        shutil.rmtree(other, ignore_errors=True)
        lab.place.rename(other)
        end = lab.run(command, other)
        other.rename(lab.place)
        return end.said[-300:] if end.code else ""
    return ""


def started_twice(lab: Lab, command: str, _: random.Random) -> str:
    """Another process, this one, holds the lock."""
    part = {
        "plan_and_preprocess": ("preprocessed",),
        "train": ("models", "fold_0", "FINE"),
        "semi_round": ("rounds", "fold_0"),
    }[command]
    before = listing(lab.place) if lab.place.exists() else {}
    with working_alone(Workspace(lab.place).lock(*part), ["the first"]):
        end = lab.run(command, lab.place)
    if before and listing(lab.place).keys() != before.keys():
        return "the second changed something"
    return _clear(end, f"process {os.getpid()} on")


ALL = COMMANDS
FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "kill -9": (killed, ALL),
    "kill -9 of a worker": (worker_killed, ("plan_and_preprocess", "train")),
    "disk full": (disk_full, ALL),
    "a written file cut off": (cut_off, ALL),
    "raw data read-only": (read_only_data, ALL),
    "a raw image cut off": (unreadable, ("plan_and_preprocess", "predict")),
    "file times of other years": (clock_jumps, ALL),
    "workspace moved": (moved, ALL),
    "a written file exchanged": (exchanged, ALL),
    "a number out of range": (wild_number, ALL),
    "somebody else's file as output": (foreign_output, ALL),
    "started twice": (started_twice, ("plan_and_preprocess", "train", "semi_round")),
}


def _clear(end: End, *expected: str) -> str:
    """What is wrong with how a command ended that should say one of these."""
    if end.code != 2 or end.said.count("error:") != 1 or "Traceback" in end.said:
        return f"exit code {end.code}: {end.said[-300:]}"
    return "" if any(words in end.said for words in expected) else f"does not say it: {end.said[-300:]}"


def _kib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1024


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--injections", type=int, default=3, help="per fault and command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", choices=list(FAULTS), action="append", help="this one alone; once for each")
    options = parser.parse_args()
    bench = running.Bench("faults", options.work)
    lab = Lab(bench.work)
    lab.prepare(bench)
    for number in range(options.injections):  # in rounds, so that a run that is stopped has seen every fault
        for name, (fault, commands) in FAULTS.items():
            for command in commands if name in (options.fault or FAULTS) else ():
                step = f"{name}, {command}, {number}"
                if step not in bench.steps:
                    lab.fresh(command)
                    trouble = fault(lab, command, random.Random(f"{options.seed} {step}"))
                    again = lab.run(command, lab.place)
                    trouble = trouble or ("" if again.code == 0 else f"second start: {again.said[-400:]}")
                    lost = lab.lost(command) if again.code == 0 else ["not finished"]
                    bench.record(step, fault=name, command_name=command, trouble=trouble, lost=lost)
                    print(step, trouble or "clear", lost or "nothing lost", flush=True)
    bench.report(text([facts for facts in bench.steps.values() if "fault" in facts], options.seed))
    if any(facts.get("trouble") or facts.get("lost") for facts in bench.steps.values()):
        raise SystemExit("something was lost or unclear")


def text(found: list[dict], seed: int) -> str:
    lines = [
        "# Faults",
        "",
        f"{len(found)} injections (seed {seed}), {running.when_and_what()}. One is lossless when the next start "
        "ended well and left what one undisturbed start leaves.",
        "",
        "| fault | command | injections | not as it should be said | losses |",
        "|---|---|---:|---:|---:|",
    ]
    for name, (_, commands) in FAULTS.items():
        for command in commands:
            these = [facts for facts in found if (facts["fault"], facts["command_name"]) == (name, command)]
            unclear, losses = (sum(bool(each[what]) for each in these) for what in ("trouble", "lost"))
            lines.append(f"| {name} | {command} | {len(these)} | {unclear} | {losses} |")
    for facts in found:
        if facts["trouble"] or facts["lost"]:
            lines += ["", f"* {facts['fault']}, {facts['command_name']}: {facts['trouble']} {facts['lost']}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
