"""A training on two hosts, as far as one machine has them: two network namespaces, joined by a virtual cable.

In each of them torchrun starts one rank; gloo has no other way to the other rank than the cable. The losses shall be
those of one process with the same global batch. Then the same again, with one rank killed after the third step: both
hosts' torchruns start their rank again. Needs root and `ip`. Result: results/two_hosts.md.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import running
from pool_scale import prepare

STEPS = 12
#: SGD: where a gradient is next to nothing, Adam's first steps depend on how it was rounded.
TRAINING = (
    "--iterations",
    STEPS,
    "--iterations-per-epoch",
    2,
    "--optimizer",
    "sgd",
    "--validations",
    0,
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--loader-workers",
    0,
    "--checkpoint-minutes",
    0,
    "--no-validation",
)
HOSTS = {"flaresemi_a": "10.213.77.1", "flaresemi_b": "10.213.77.2"}


def main() -> None:
    options = running.parser(__doc__ or "").parse_args()
    bench = running.Bench("two_hosts", options.work)
    start = bench.work / "one_process"
    data = prepare(bench, start, 0, 0)
    bench.command("one process", "flaresemi_train", "FINE", 0, "-d", data, "-w", start, *TRAINING, "--continue")
    for name in ("two hosts", "two hosts, one rank killed"):
        if name not in bench.steps:
            on_two_hosts(bench, name, data, start)
    report(bench)


def on_two_hosts(bench: running.Bench, name: str, data: Path, start: Path) -> None:
    """Trains with one rank in each namespace."""
    workspace = bench.work / name.replace(",", "").replace(" ", "_")
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(start, workspace, ignore=shutil.ignore_patterns("models"))
    training = ["FINE", "0", "-d", str(data), "-w", str(workspace), *map(str, TRAINING)]
    print(f"[{bench.name}] {name}", flush=True)
    started = time.monotonic()
    with namespaces(), open(workspace / "train.log", "w", encoding="utf-8") as log:
        hosts = []
        for host, address in HOSTS.items():
            launch = [
                "ip",
                "netns",
                "exec",
                host,
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--nproc-per-node",
                "1",
                "--max-restarts",
                "3",
                "--rdzv-backend",
                "c10d",
                "--local-addr",
                address,
                "--rdzv-endpoint",
                f"{HOSTS['flaresemi_a']}:29500",
                # torchrun would ask the machine's name for this, which is the same in both.
                "--rdzv-conf",
                f"is_host={int(host == 'flaresemi_a')}",
                "-m",
                "flaresemi.cli.train",
                *training,
            ]
            environment = os.environ | {"GLOO_SOCKET_IFNAME": host, "OMP_NUM_THREADS": "1"}
            hosts.append(subprocess.Popen(launch, stdout=log, stderr=subprocess.STDOUT, env=environment))
        if "killed" in name:
            kill_a_rank(hosts[1], workspace / "models" / "fold_0" / "FINE" / "history.jsonl")
        codes = [host.wait() for host in hosts]
    if codes != [0, 0]:
        raise SystemExit(f"{name}: exit codes {codes}; see {workspace / 'train.log'}")
    bench.record(name, seconds=time.monotonic() - started, history=history(workspace))


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """Two network namespaces with a virtual cable between them, and nothing else."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)  # of a start that was killed
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        one, other = HOSTS
        ip("link", "add", one, "netns", one, "type", "veth", "peer", "name", other, "netns", other)
        for host, address in HOSTS.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", host)
            for device in (host, "lo"):
                ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False)


def kill_a_rank(host: subprocess.Popen, path: Path) -> None:
    """Kills the rank of a torchrun once the training has written its first lines."""
    while host.poll() is None and (not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < 1):
        time.sleep(0.02)
    children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text(encoding="ascii").split()
    for child in children:
        if b"\0RANK=" in Path(f"/proc/{child}/environ").read_bytes():
            os.kill(int(child), signal.SIGKILL)


def history(workspace: Path) -> list[dict]:
    path = workspace / "models" / "fold_0" / "FINE" / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report(bench: running.Bench) -> None:
    alone = history(bench.work / "one_process")
    both = [bench.steps[name]["history"] for name in ("two hosts", "two hosts, one rank killed")]
    lines = [
        "# One training on two hosts",
        "",
        "Two network namespaces joined by a virtual cable; torchrun starts one gloo rank in each. The global batch is",
        "the same. SGD, fp32. In the last column one rank got SIGKILL, and both torchruns started theirs again.",
        "",
        "| step | one process | two hosts | one rank killed |",
        "|---:|---:|---:|---:|",
    ]
    for rows in zip(alone, *both, strict=True):
        lines.append(f"| {rows[0]['iteration']} | " + " | ".join(f"{row['loss']:.7f}" for row in rows) + " |")
    far = max(abs(one["loss"] - two["loss"]) / one["loss"] for one, two in zip(alone, both[0], strict=True))
    same = [row["loss"] for row in both[0]] == [row["loss"] for row in both[1]]
    lines += [
        "",
        f"Largest relative difference between one process and two hosts: {far:.1e}. Killed and restarted against "
        f"undisturbed: {'equal in every digit' if same else '**different**'}.",
    ]
    bench.report("\n".join(lines))
    if far > 1e-4 or not same:
        raise SystemExit("the losses differ")


if __name__ == "__main__":
    main()
