"""flaresemi_serve as it is started, and the programs of examples/serve as they ask it."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from flaresemi.cli import serve
from flaresemi.io.images import read_image, read_label_map, write_label_map
from tests.made_dicom import Stack
from tests.made_model import write_liver_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "serve"


@pytest.fixture
def folder(tmp_path):
    """A model that nobody trained, a scan as a series and as a file."""
    write_liver_model(tmp_path / "flaresemi")
    array = np.zeros((12, 24, 24), np.int16)
    array[:, 0] = -1000
    array[4:8, 6:18, 5:13] = 300
    Stack(array_zyx=array, spacing=(3.0, 3.0, 3.0)).write(tmp_path / "scans" / "a")
    image = read_image([tmp_path / "scans" / "a"])
    write_label_map(tmp_path / "scan.nii.gz", image.array_czyx[0].astype(np.int16), image.source)
    (tmp_path / "token").write_text("0123456789abcdef\n", encoding="utf-8")
    return tmp_path


@contextlib.contextmanager
def started(folder, *words):
    """The command in a process of its own; gives address and token, and checks that it ends well when asked to."""
    command = [sys.executable, "-m", "flaresemi.cli.serve", "-m", str(folder / "flaresemi"), "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        lines = [process.stdout.readline().split()[-1] for _ in range(2)]
        yield lines
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()


def test_it_is_asked_by_the_examples(folder):
    words = ["--allow", str(folder / "scans"), "--device", "cpu", "--engine", "torch", "--threads", "1"]
    spec = importlib.util.spec_from_file_location("slicer_example", EXAMPLES / "slicer.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with started(folder, *words) as (address, token):
        asked = {"address": address, "token": token}
        told = example.segment_file(folder / "scan.nii.gz", folder / "labels.nii.gz", **asked)
        assert example.organs(**asked) == {7: "liver"}
        with pytest.raises(RuntimeError, match="token is missing or wrong"):
            example.organs(address=address, token="wrong")
        if shutil.which("curl"):
            done = subprocess.run(
                ["sh", str(EXAMPLES / "segment.sh"), str(folder / "scan.nii.gz"), address],
                env={**os.environ, "TOKEN": token},
                capture_output=True,
                encoding="utf-8",
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert (folder / "scan_labels.nii.gz").read_bytes() == (folder / "labels.nii.gz").read_bytes()
            assert json.loads((folder / "scan_labels.json").read_text(encoding="utf-8"))["statistics"]
    values = read_label_map(folder / "labels.nii.gz").array_zyx
    assert np.count_nonzero(values == 7) == told["statistics"][0]["voxels"]
    assert set(np.unique(values)) <= {0, 7}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--allow", "nowhere"], "--allow names no folder"),
        (["--token-file", "short"], "16 letters and digits at least"),
        (["--token-file", "missing"], "base64 > FILE makes one"),
        (["--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
        (["-m", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_served_is_refused_with_one_message(folder, monkeypatch, capsys, words, said):
    monkeypatch.chdir(folder)
    (folder / "short").write_text("abc", encoding="utf-8")
    assert serve.main(["--port", "0", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_its_packages_it_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("flaresemi.web.running.importlib.util.find_spec", lambda name: None)
    assert serve.main([]) == 2
    assert "flaresemi[serve]" in capsys.readouterr().err


def test_check_loads_the_models_and_ends(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert serve.main(["--check", "--device", "cpu", "--engine", "torch", "--token-file", "token"]) == 0
    assert "liver" in capsys.readouterr().out


@pytest.mark.parametrize("words", [(), ("--organ-codes", "codes.json")])
def test_the_users_codes_are_those_of_flaresemi_predict(folder, monkeypatch, words):
    monkeypatch.chdir(folder)
    own = {"value": "X1", "scheme": "99US", "meaning": "Our liver"}
    for name, value in (("dataset.json", "X1"), ("codes.json", "X2")):
        text = json.dumps({"labels": {"liver": 7}, "codes": {"liver": own | {"value": value}}})
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "results").mkdir()
    options = serve._parser().parse_args(["--device", "cpu", "--engine", "torch", *words])
    with contextlib.closing(serve._predictions(options, folder / "results")) as predictions:
        answer = predictions.start([folder / "scans" / "a"], "dicom-seg").result(60)
        (segment,) = pydicom.dcmread(answer.file).SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == ("X2" if words else "X1")


def test_what_is_being_answered_has_as_long_as_any_request(folder, monkeypatch):
    monkeypatch.chdir(folder)
    given = []

    class Stopped:
        def __init__(self, *_, grace_seconds):
            given.append(grace_seconds)

        def run(self):
            pass

    monkeypatch.setattr(serve, "Running", Stopped)
    assert serve.main(["--port", "0", "--device", "cpu", "--engine", "torch", "--timeout", "7m"]) == 0
    assert given == [420.0]
