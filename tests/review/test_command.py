"""The command from the outside: its address, one server a workspace, and how it ends."""

import contextlib
import http.client
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.review.made_review import MadeReview

pytest.importorskip("uvicorn", reason='no uvicorn: pip install "flaresemi[review]"')


@contextlib.contextmanager
def started(made: MadeReview, *words: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "flaresemi.cli.review", "-d", str(made.dataset), "-w", str(made.workspace.root)]
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: subprocess.Popen) -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(process.stdout.readline().removeprefix("open ").strip())


def status(place: urllib.parse.SplitResult) -> int:
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", place.path)
        return connection.getresponse().status


@pytest.mark.skipif(sys.platform == "win32", reason="signals end it otherwise there")
def test_it_serves_alone_until_it_is_stopped_and_again_under_its_address(made: MadeReview) -> None:
    with started(made, "--port", "0") as process:
        place = address(process)
        assert place.hostname == "127.0.0.1"
        assert status(place) == 200
        with started(made, "--port", "0") as second:
            told = second.communicate(timeout=120)[1]
            assert second.returncode == 2
            assert "another process is at work here" in told
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with started(made, "--port", str(place.port)) as process:
        assert address(process) == place
        assert status(place) == 200
        process.kill()  # nothing that is left behind keeps the next one from starting
    with started(made, "--port", str(place.port)) as process:
        assert address(process) == place
