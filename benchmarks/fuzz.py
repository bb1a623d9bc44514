"""Spoilt files of every kind that is read: may anything but a readable refusal, or a valid result, come of them?

Whole files (made here, and the odd real ones of ../shared/data/robustness) are spoilt in one to four ways each, by a
seed that is the number of the input: bits, bytes and numbers of headers, lengths, lines and values of text headers,
values of JSON; inside of gzip streams and checkpoints, too. Each is read in a process that may take 4 GiB of address
space and 10 s of processor time (100 s of waiting) for it. A finding is another exception than FlaresemiError, a
warning of a library, a crash, a hang, memory beyond the bound, 128 MiB that stay taken afterwards, a message of more
than 2000 characters, voxels from outside of a header's folder, a path outside of its folder, or a record that cannot be
written and read again.

A second start goes on with new inputs; `--again KIND NUMBER` repeats one. Result: results/fuzz.md.
"""

import datetime
import sys
from pathlib import Path

import running

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from flaresemi.training.runs import git_revision
from tests.trust.batches import fuzz
from tests.trust.targets import targets

#: What was mended because of earlier runs, of tests that were written for it, or of reading the code for it.
MENDED = (
    "metaimage, nrrd: a header could name any file of the machine as its voxels, also by a spelling that our check did "
    "not know and the library did (`ElementDataFile : ../x`)",
    "metaimage: memory was taken for whatever CompressedDataSize said",
    "nifti: a quaternion that is no rotation, a negative voxel size or a qfac of 0.5 ended in a traceback",
    "nrrd: lines of more than a thousand characters made the library write past its buffers and die",
    "dicom: the library took up to 1.8 GB for a length in a file of 700 bytes, and kept it",
    "nifti, metaimage: numbers beyond all bounds in a header ended in warnings, or as voxels of 10^38 mm",
    "nifti, metaimage, nrrd: memory was taken for what a header announced before the stream was known to hold it",
    "stored case: headers of .npy files that numpy cannot parse ended in a traceback; a message as long as a name",
    "checkpoint: archives with a damaged directory or names that are no text; pickles with wrong arguments, lengths or "
    "versions; weights that are no tensors; networks larger than the weights, for which memory was taken",
    "records, dataset.json: messages as long as the value they complain about; halves of surrogate pairs, which cannot "
    "be written again; numbers of 5000 digits; checks of records that stumbled over what they check",
    "scores.csv: numbers that are not finite, rows that end early",
    "dataset.json: a tolerance that no float can hold ended in a traceback",
    "integrity.csv, history.jsonl: bytes that are no text, rows without an iteration, nested too deeply",
    "lists: names longer than file systems take, a byte order mark",
)


def main() -> None:
    parser = running.parser(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=120, help="for each kind (default: 120)")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help=f"of {', '.join(targets())}")
    parser.add_argument("--again", nargs=2, metavar=("KIND", "NUMBER"), help="repeat one input")
    options = parser.parse_args()
    robustness = running.SHARED / "robustness"
    shared = robustness if robustness.is_dir() else None
    if options.again:
        print(fuzz(options.again[0], int(options.again[1]), 1, shared))
        return
    bench = running.Bench("fuzz", options.work)
    made = f"{datetime.date.today().isoformat()}, {git_revision()}"
    for kind in options.kinds or targets():
        known = bench.steps.get(kind, {"next": 0, "refused": 0, "read": 0, "findings": []})
        outcome = fuzz(kind, known["next"], 10**9, shared, most_seconds=options.seconds)
        bench.record(
            kind,
            next=known["next"] + outcome.counts.total(),
            refused=known["refused"] + outcome.counts["refused"],
            read=known["read"] + outcome.counts["read"],
            findings=known["findings"] + outcome.findings,
            made=made,
        )
        print(f"{kind}: {dict(outcome.counts)} {outcome.findings[:5]}", flush=True)
    bench.report(_text(bench.steps, shared))


def _text(steps: dict[str, dict], shared: Path | None) -> str:
    total = sum(facts["next"] for facts in steps.values())
    findings = [(kind, *finding) for kind, facts in steps.items() for finding in facts["findings"]]
    lines = [
        "# Spoilt files",
        "",
        f"**{total} inputs, {len(findings)} findings.** At most 4 GiB of memory and 10 s of processor time an input"
        f"{'' if shared else '; without the real files of ../shared/data/robustness'}.",
        "",
        "| kind | inputs | refused with a message | read | findings | last run |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {kind} | {facts['next']} | {facts['refused']} | {facts['read']} | {len(facts['findings'])} "
        f"| {facts['made']} |"
        for kind, facts in steps.items()
    ]
    lines += ["", *(f"* {kind} {number}: {what}" for kind, number, what in findings)] if findings else []
    lines += ["", "Mended while this was made; some found by this script, some by tests or by reading the code:", ""]
    return "\n".join([*lines, *(f"* {what}" for what in MENDED)])


if __name__ == "__main__":
    main()
