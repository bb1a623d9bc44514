"""Standard output and error that are closed, full, left or in another encoding; and what a terminal must not obey."""

import argparse
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flaresemi.cli import demo, doctor, evaluate, export, find_best, plan_and_preprocess, predict, semi_round, train
from flaresemi.cli.common import StrictParser, run
from flaresemi.cli.output import Outlet, require_printed
from flaresemi.errors import DatasetError

logger = logging.getLogger("flaresemi.test")

COMMANDS = (demo, doctor, evaluate, export, find_best, plan_and_preprocess, predict, semi_round, train)

#: A command that writes a file and tells of it, before and after; or, with a word, one that only prints.
PROGRAM = """
import logging, subprocess, sys, warnings
from pathlib import Path
from flaresemi.cli.common import StrictParser, run
from flaresemi.cli.output import require_printed

def command(options):
    print("ä ± " * 5000)
    for _ in range(2000):
        logging.getLogger("flaresemi.x").warning("said of Größe")
    warnings.warn("by a library")
    subprocess.run([sys.executable, "-c", "import os; os.fstat(0), os.fstat(1), os.fstat(2)"], check=True)
    print("half", flush=True)
    if options.only:
        require_printed()
    else:
        Path(options.file).write_text("done", encoding="utf-8")

parser = StrictParser("x", "x")
parser.add_argument("file")
parser.add_argument("--only", action="store_true")
sys.exit(run(command, parser, None))
"""

#: As programs start for most: what is printed waits in memory, and is lost at the end rather than at once.
BUFFERED = {"PYTHONUNBUFFERED": ""}

CLOSED = {"out": ">&-", "err": "2>&-", "both": ">&- 2>&-", "all three": "<&- >&- 2>&-"}
FULL = {"full out": ">/dev/full", "full err": "2>/dev/full", "both full": ">/dev/full 2>/dev/full"}


def _shell(tmp_path: Path, redirected: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    line = f'"$0" "$@" {redirected}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, str(program), str(tmp_path / "made"), *words],
        capture_output=True,
        env=os.environ | BUFFERED | environment,
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("redirected", [*CLOSED.values(), *FULL.values()], ids=[*CLOSED, *FULL])
def test_the_work_ends_well_wherever_its_output_goes(redirected: str, unbuffered: str, tmp_path: Path) -> None:
    end = _shell(tmp_path, redirected, PYTHONUNBUFFERED=unbuffered)
    assert end.returncode == 0, end.stderr
    assert b"Traceback" not in end.stderr and b"Exception ignored" not in end.stderr
    assert (tmp_path / "made").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("redirected", [">&-", ">/dev/full"])
def test_a_command_that_only_prints_says_that_it_could_not(redirected: str, tmp_path: Path) -> None:
    end = _shell(tmp_path, redirected, "--only")
    assert end.returncode == 2
    assert b"error: standard output cannot be written to" in end.stderr
    for option in ("--help", "--version"):
        end = _shell(tmp_path, redirected, option)
        assert end.returncode == 2 and b"error: standard output" in end.stderr


@pytest.mark.parametrize(("only", "code"), [(True, 141), (False, 0)], ids=["prints", "works"])
def test_a_reader_that_leaves_stops_only_what_is_for_it(only: bool, code: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    words = [sys.executable, str(program), str(tmp_path / "made"), *(["--only"] if only else [])]
    environment = os.environ | BUFFERED
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == code
    assert b"Traceback" not in said and b"Broken" not in said and b"error:" not in said
    assert (tmp_path / "made").exists() is not only


@pytest.mark.parametrize(("encoding", "table"), [("ascii", b"\\xe4 +-"), ("latin-1", b"\xe4 \xb1"), ("cp1252", None)])
def test_what_an_encoding_lacks_is_replaced(encoding: str, table: bytes | None, tmp_path: Path) -> None:
    end = _shell(tmp_path, "", PYTHONIOENCODING=encoding)
    assert end.returncode == 0
    assert end.stdout.startswith(table or b"\xe4 \xb1")
    assert b"\xdf" in end.stderr or b"\\xdf" in end.stderr


def test_a_log_goes_on_when_its_disk_has_room_again() -> None:
    class Disk(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = Disk()
    outlet = Outlet(disk)
    outlet.write("lost\n")
    disk.full = False
    outlet.write("kept\n")
    assert disk.getvalue() == "kept\n"


HOSTILE = "\x1b]0;own\x07\r\u202e\x9b31m\u2028\udcff\ttext"
SEEN = "\\x1b]0;own\\x07\\r\\u202e\\x9b31m\\u2028\\udcff\ttext"


def _of(command: Callable[[argparse.Namespace], None]) -> int:
    return run(command, StrictParser("x", "x"), [])


def test_nothing_in_a_text_tells_a_terminal_what_to_do(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own handlers keep records as they are, and xdist cannot send half of a character.
    monkeypatch.setattr(logging.root, "handlers", [])

    def command(options: argparse.Namespace) -> None:
        print(HOSTILE)
        logger.info("log %s", HOSTILE)
        logger.warning("%s", Path("a\nerror: all is lost"))
        raise DatasetError(HOSTILE, where=Path("b\nerror: all is lost"))

    assert _of(command) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{SEEN}\n"
    where = "\\nerror: all is lost"
    assert captured.err == f"log {SEEN}\nwarning: a{where}\nerror: {SEEN}\n       b{where}\n"


def test_progress_bars_still_move_the_cursor(capsys: pytest.CaptureFixture) -> None:
    from tqdm import tqdm

    def command(options: argparse.Namespace) -> None:
        for _ in tqdm(range(2), desc="outer"):
            for _ in tqdm(range(2), desc="in\x1b[2Jner"):
                pass

    assert _of(command) == 0
    said = capsys.readouterr().err
    assert "\x1b[A" in said and "\r" in said
    assert "\x1b[2J" not in said and "in\\x1b[2Jner" in said


def test_streams_are_left_as_they_were_found() -> None:
    before = sys.stdout, sys.stderr
    assert _of(lambda options: None) == 0
    assert (sys.stdout, sys.stderr) == before
    require_printed()  # outside of a command there is nothing to check


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("a\udcffb", "bytes that are no UTF-8"),
        ("a\nerror: b", "a control character"),
        ("a\x1b[2J", "a control"),
        ("a\u2028b", "a control character"),
    ],
)
def test_every_command_refuses_a_word_that_is_no_text(
    module: object, word: str, why: str, capsys: pytest.CaptureFixture
) -> None:
    for words in (["-d", word], ["--output=" + word], [word]):
        assert module.main(words) == 2  # type: ignore[attr-defined]
        said = capsys.readouterr().err
        assert said.startswith("error: '") and why in said.splitlines()[0]
        assert "error: b" not in said.splitlines()


def test_a_current_folder_or_link_that_is_no_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    odd = tmp_path / "a\udcffb"
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    parser = StrictParser("x", "x")
    parser.add_argument("--path")
    for words in (["--path", str(tmp_path / "link")], [f"--path={tmp_path / 'link'}"]):
        assert run(lambda options: None, parser, words) == 2
        assert "a\\udcffb' holds bytes that are no UTF-8" in capsys.readouterr().err
    assert run(lambda options: None, parser, ["--path", str(tmp_path)]) == 0
    monkeypatch.chdir(odd)
    assert run(lambda options: None, parser, []) == 2
    assert "a\\udcffb' holds bytes that are no UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Größe", "肝臓", "کبد\u200cراست", "👩\u200d⚕️ a b"])
def test_letters_of_all_scripts_are_text(name: str) -> None:
    parser = StrictParser("x", "x")
    parser.add_argument("path", type=Path)
    seen: list[argparse.Namespace] = []
    assert run(seen.append, parser, [name]) == 0
    assert seen[0].path == Path(name)
