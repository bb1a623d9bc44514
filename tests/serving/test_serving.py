"""A warm server, asked over a real connection: by a token alone, for images that it is sent or may read, in turn."""

import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pydicom
import pytest

from flaresemi.inference.cascade import Segmenter
from flaresemi.io.images import read_image, read_label_map, write_label_map
from flaresemi.serving.app import make_app
from flaresemi.serving.jobs import BusyError, Limits, Predictions
from flaresemi.web.gate import LOOPBACK, Gate
from flaresemi.web.running import Running, listening
from flaresemi.workspace import Workspace
from tests.cli.conftest import bright_is_liver  # noqa: F401
from tests.cli.test_predict_dicom import folder  # noqa: F401

TOKEN = "t" * 32
LIVER = 4 * 12 * 8


def write_nifti_like(series, path):
    image = read_image([series])
    write_label_map(path, image.array_czyx[0].astype(np.int16), image.source)
    return path


class Client:
    """Asks a server."""

    def __init__(self, port):
        self.port = port

    def ask(self, path, body=None, *, method=None, token=TOKEN, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if isinstance(body, dict):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()


@contextlib.contextmanager
def served(root, *, limits=None, most_bytes=1 << 20, hosts=LOOPBACK):
    """A server with the models of a folder, which may read its scans."""
    segmenter = Segmenter.load(Workspace(root / "flaresemi").models, device="cpu", engine="torch")
    for name in ("results", "uploads"):
        (root / name).mkdir()
    predictions = Predictions(
        segmenter, reliability=None, folder=root / "results", roots=[root / "scans"], limits=limits or Limits()
    )
    gate = Gate(
        make_app(predictions, root / "uploads"),
        token=TOKEN,
        hosts=hosts,
        most_bytes=most_bytes,
        open_paths=("/health",),
    )
    with listening("127.0.0.1", 0) as listener:
        running = Running(gate, listener)
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield Client(listener.getsockname()[1]), predictions
        finally:
            running.stop()
            thread.join(30)
            predictions.close()
    assert not thread.is_alive()
    assert list((root / "uploads").iterdir()) == []


def test_an_image_that_is_sent(folder):  # noqa: F811
    scan = write_nifti_like(folder / "scans" / "a", folder / "scan.nii.gz")
    with served(folder) as (client, _):
        status, text = client.ask("/segment?name=my%20scan.nii.gz", scan.read_bytes())
        assert status == 200, text
        told = json.loads(text)
        (liver,) = told["statistics"]
        assert (liver["organ"], liver["voxels"], liver["mean"]) == ("liver", LIVER, [300.0])
        assert told["reliability"] is None
        status, content = client.ask(told["labels"])
        assert status == 200
        (folder / "labels.nii.gz").write_bytes(content)
        assert np.count_nonzero(read_label_map(folder / "labels.nii.gz").array_zyx == 7) == LIVER
        assert client.ask(f"/results/{told['id']}", method="DELETE")[1] == b'{"removed":true}'
        assert client.ask(told["labels"])[0] == 404


@pytest.mark.parametrize("form", ["mha", "dicom-seg", "rtstruct"])
def test_a_series_that_is_named(folder, form):  # noqa: F811
    with served(folder) as (client, _):
        status, text = client.ask(f"/segment?format={form}", {"path": str(folder / "scans" / "a")})
        assert status == 200, text
        content = client.ask(json.loads(text)["labels"])[1]
    path = folder / f"out.{'mha' if form == 'mha' else 'dcm'}"
    path.write_bytes(content)
    if form == "mha":
        assert np.count_nonzero(read_label_map(path).array_zyx == 7) == LIVER
    else:
        assert pydicom.dcmread(path).Modality == {"dicom-seg": "SEG", "rtstruct": "RTSTRUCT"}[form]


def test_what_is_told_of_the_server(folder):  # noqa: F811
    with served(folder) as (client, _):
        status, text = client.ask("/health", token=None)
        assert (status, json.loads(text)) == (200, {"status": "ready", "pending": 0, "made": 0})
        about = json.loads(client.ask("/model")[1])
        assert (about["organs"], about["channels"], about["reliability"]) == ({"liver": [7]}, ["CT"], False)


@pytest.mark.parametrize(
    ("headers", "token", "status"),
    [
        ({}, None, 401),
        ({}, "x" * 32, 401),
        ({"Origin": "http://evil.example"}, TOKEN, 403),
        ({"Host": "evil.example"}, TOKEN, 421),
        ({"Host": "evil.example"}, None, 421),
        ({"Host": "["}, None, 421),
        ({"Host": "[::1"}, TOKEN, 421),
        ({"Origin": "http://["}, None, 403),
        ({"Origin": "http://[::1"}, TOKEN, 403),
        ({"Origin": ""}, TOKEN, 403),
    ],
)
def test_strangers_get_nowhere(folder, headers, token, status):  # noqa: F811
    with served(folder) as (client, predictions):
        for path in ("/model", "/segment?name=a.nii.gz", "/results/x/labels.nii.gz"):
            assert client.ask(path, b"x" if "segment" in path else None, token=token, **headers)[0] == status
        assert predictions.state["made"] == 0


def test_any_name_of_the_host_is_still_a_name(folder):  # noqa: F811
    with served(folder, hosts=None) as (client, _):
        assert client.ask("/model", Host="scanner.example")[0] == 200
        assert client.ask("/model", Host="[")[0] == 421


@pytest.mark.parametrize(
    "path",
    [
        "scans/../secret.nii.gz",
        "secret.nii.gz",
        "/etc/passwd",
        "scans/link.nii.gz",
        "scans",
        "scans/missing.nii.gz",
        "",
        "a\0b",
    ],
)
def test_no_other_file_is_read(folder, path):  # noqa: F811
    write_nifti_like(folder / "scans" / "a", folder / "secret.nii.gz")
    (folder / "scans" / "link.nii.gz").symlink_to(folder / "secret.nii.gz")
    with served(folder) as (client, predictions):
        for named in (path, str(folder / path) if "\0" not in path else path):
            status, text = client.ask("/segment", {"path": named})
            assert status == 422, text
        assert predictions.state["made"] == 0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/segment?name=a.nii.gz", b"", 400),
        ("/segment?name=a.exe", b"x", 400),
        ("/segment", b"x", 400),
        ("/segment?name=a.nii.gz&format=exe", b"x", 400),
        ("/segment?name=a.nii.gz", b"no image", 422),
        ("/segment?name=a.nrrd", b"NRRD0004\ndata file: /etc/passwd\n\n", 422),
        ("/segment", {"paths": []}, 400),
        ("/segment", {"paths": [1]}, 400),
        ("/segment?name=a.nii.gz&format=rtstruct", b"x" * 400, 422),
        ("/results/../../etc/passwd", None, 404),
        ("/results/%2e%2e/labels.nii.gz", None, 404),
    ],
)
def test_what_makes_no_sense_is_answered_and_the_next_one_works(folder, path, body, status):  # noqa: F811
    with served(folder) as (client, _):
        found, text = client.ask(path, body)
        assert found == status, text
        assert str(folder) not in text.decode()
        assert client.ask("/segment", {"path": str(folder / "scans" / "a")})[0] == 200


@pytest.mark.parametrize("is_chunked", [False, True])
def test_more_than_is_allowed_is_not_taken(folder, is_chunked):  # noqa: F811
    with served(folder, most_bytes=1000) as (client, predictions):
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = iter([b"x" * 400] * 10) if is_chunked else b"x" * 1001
        try:
            connection.request("POST", "/segment?name=a.nii.gz", body, headers, encode_chunked=is_chunked)
            assert connection.getresponse().status == 413
        finally:
            connection.close()
        assert client.ask("/health")[0] == 200
        assert predictions.state["made"] == 0


def test_a_full_queue_and_a_late_answer(folder, monkeypatch):  # noqa: F811
    going = threading.Event()
    with served(folder, limits=Limits(waiting=1, seconds=0.5)) as (client, predictions):
        make = predictions._make
        monkeypatch.setattr(predictions, "_make", lambda *all_: (going.wait(30), make(*all_))[1])
        body, statuses = {"path": str(folder / "scans" / "a")}, []
        threads = [threading.Thread(target=lambda: statuses.append(client.ask("/segment", body)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            if predictions.state["pending"] == 2:
                break
            time.sleep(0.01)
        assert client.ask("/segment", body)[0] == 503
        for thread in threads:
            thread.join()
        assert statuses == [504, 504]
        going.set()
        for _ in range(500):
            if predictions.state["pending"] == 0:
                break
            time.sleep(0.01)
        assert predictions.state["made"] == 1  # the one that waited was not begun


@contextlib.contextmanager
def full(predictions, monkeypatch):
    """A prediction is made as long as the block runs, and none may wait."""
    going, begun = threading.Event(), threading.Event()
    monkeypatch.setattr(predictions, "_make", lambda *_: (begun.set(), going.wait(30)))
    future = predictions.start([], "nii.gz")
    assert begun.wait(30)
    try:
        yield
    finally:
        going.set()
        future.result(30)


def test_nothing_stays_of_an_image_that_a_full_server_refuses(folder, monkeypatch):  # noqa: F811
    with served(folder, limits=Limits(waiting=0), most_bytes=1 << 26) as (client, predictions):
        with full(predictions, monkeypatch):
            assert client.ask("/segment?name=a.nii.gz", bytes(1 << 24))[0] == 503
            assert list((folder / "uploads").iterdir()) == []
            # Who asks first need not send it.
            head = f"POST /segment?name=a.nii.gz HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
            with socket.create_connection(("127.0.0.1", client.port), timeout=30) as asked:
                asked.sendall(f"{head}Content-Length: 9999\r\nExpect: 100-continue\r\n\r\n".encode())
                assert asked.recv(12) == b"HTTP/1.1 503"
            # The last place may be taken while an image is sent.
            own = folder / "uploads" / "sent"
            own.mkdir()
            with pytest.raises(BusyError):
                predictions.start([own / "image.nii.gz"], "nii.gz", own)
            assert not own.exists()
        assert predictions.start([], "nii.gz").result(30)  # there is room again


def test_results_go_in_time_though_nobody_asks(folder):  # noqa: F811
    with served(folder, limits=Limits(kept_seconds=0.5)) as (client, _):
        for _ in range(2):
            assert client.ask("/segment", {"path": str(folder / "scans" / "a")})[0] == 200
            for _ in range(200):
                if not list((folder / "results").iterdir()):
                    break
                time.sleep(0.05)
            assert list((folder / "results").iterdir()) == []


def test_old_results_go(folder):  # noqa: F811
    with served(folder, limits=Limits(kept=1)) as (client, _):
        body = {"path": str(folder / "scans" / "a")}
        first, second = (json.loads(client.ask("/segment", body)[1])["labels"] for _ in range(2))
        assert (client.ask(first)[0], client.ask(second)[0]) == (404, 200)
        assert len(list((folder / "results").iterdir())) == 1
