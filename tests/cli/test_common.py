"""Exit codes, messages and log lines that all commands share."""

import argparse
import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaresemi.cli.common import (
    StoppedEarly,
    StrictParser,
    add_dataset_options,
    dataset_words,
    open_workspace,
    print_next,
    run,
    workspace_of,
)
from flaresemi.errors import DatasetError

logger = logging.getLogger("flaresemi.test")


def _parser() -> StrictParser:
    parser = StrictParser("flaresemi_test", "A command for tests.")
    add_dataset_options(parser)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("-r", "--references", required=True)
    return parser


def _run(command: Callable[[argparse.Namespace], None], *words: str) -> int:
    return run(command, _parser(), ["-r", "somewhere", *words])


def _raise(error: BaseException) -> Callable[[argparse.Namespace], None]:
    def command(options: argparse.Namespace) -> None:
        raise error

    return command


def test_a_command_that_ends_well_returns_zero() -> None:
    seen = []
    assert _run(seen.append, "--epochs", "3") == 0
    assert seen[0].epochs == 3


@pytest.mark.parametrize("word", ["--epoch", "--epoch=5", "--epohcs"])
def test_a_misspelt_option_names_the_closest_one(word: str, capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(AssertionError("must not run")), word, "5") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: unknown option '--epo")
    assert "did you mean '--epochs'?" in message


def test_a_misspelt_required_option_is_named_not_reported_missing(capsys: pytest.CaptureFixture) -> None:
    assert run(_raise(AssertionError("must not run")), _parser(), ["--reference", "x"]) == 2
    assert "did you mean '--references'?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--epochs", "many"], ["extra"], ["-q"], ["--verbose", "--quiet"]])
def test_wrong_use_is_one_message_and_code_two(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(AssertionError("must not run")), *words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "--help" in captured.err
    assert captured.out == ""


def test_help_and_version_end_well(capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(AssertionError("must not run")), "--help") == 0
    assert "--workspace" in capsys.readouterr().out
    assert _run(_raise(AssertionError("must not run")), "--version") == 0
    assert capsys.readouterr().out.startswith("flaresemi ")


def test_a_users_error_is_printed_without_traceback(capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(DatasetError("no cases", where="some/folder", fix="add one"))) == 2
    assert capsys.readouterr().err == "error: no cases\n       some/folder\n       add one\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        _run(_raise(ZeroDivisionError()))
    for bug in (ValueError("a"), KeyError("a"), AttributeError("a"), RuntimeError("a")):
        with pytest.raises(type(bug)):
            _run(_raise(bug))


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_any_error_of_the_system_names_the_path_and_what_to_do(number: int, capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(OSError(number, os.strerror(number), "/data/plans.json"))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and "/data/plans.json" in lines[1] and "the same command goes on" in lines[2]


def test_what_the_machine_lacks_ends_with_a_message(capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(MemoryError()), "-w", "/some/workspace") == 2
    assert "memory ran out\n       /some/workspace" in capsys.readouterr().err
    assert _run(_raise(RuntimeError("can't start new thread"))) == 2
    assert "no more processes or threads" in capsys.readouterr().err


def test_a_command_may_have_as_many_files_open_as_the_hard_limit_allows() -> None:
    program = (
        "import resource, sys\nfrom flaresemi.cli.common import StrictParser, run\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))\n"
        "show = lambda options: print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "sys.exit(run(show, StrictParser('x', 'x'), []))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], encoding="utf-8") == "(200, 200)\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("write", ["text", "tofile", "save"])
def test_a_really_full_disk_names_the_workspace(write: str, capsys: pytest.CaptureFixture) -> None:
    def command(options: argparse.Namespace) -> None:
        with open("/dev/full", "wb") as file:
            if write == "text":
                file.write(bytes(1 << 20))
            elif write == "tofile":
                np.zeros(1 << 20).tofile(file)
            else:
                np.save(file, np.zeros(1 << 20))

    assert _run(command, "-w", "/some/workspace") == 2
    message = capsys.readouterr().err
    assert "no space left" in message and "/some/workspace" in message


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(KeyboardInterrupt())) == 130
    assert "stopped; start again with the same command to go on" in capsys.readouterr().err


def test_a_stop_from_outside_is_told_apart_from_success_and_failure(capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(StoppedEarly("stopped and saved at iteration 7"))) == 143
    assert capsys.readouterr().err == "stopped and saved at iteration 7\n"


def test_a_command_may_return_its_own_code() -> None:
    assert _run(lambda options: 3) == 3


def test_a_broken_pipe_elsewhere_is_told(capsys: pytest.CaptureFixture) -> None:
    assert _run(_raise(BrokenPipeError(errno.EPIPE, "a worker's pipe"))) == 2
    assert "a worker's pipe" in capsys.readouterr().err


def test_log_lines_go_plain_to_stderr_and_warnings_are_marked(capsys: pytest.CaptureFixture) -> None:
    def command(options: argparse.Namespace) -> None:
        logger.debug("hidden")
        logger.info("34 cases")
        logger.warning("1 case is empty")

    assert _run(command) == 0
    captured = capsys.readouterr()
    assert captured.err == "34 cases\nwarning: 1 case is empty\n"
    assert captured.out == ""
    assert _run(command, "--quiet") == 0
    assert capsys.readouterr().err == "warning: 1 case is empty\n"
    assert _run(command, "--verbose") == 0
    assert "debug: flaresemi.test: hidden\n" in capsys.readouterr().err


def test_a_command_inside_a_command_logs_once(capsys: pytest.CaptureFixture) -> None:
    def inner(options: argparse.Namespace) -> None:
        logger.info("inner")

    def outer(options: argparse.Namespace) -> None:
        assert _run(inner) == 0
        logger.info("outer")

    assert _run(outer) == 0
    assert capsys.readouterr().err == "inner\nouter\n"


def test_logging_is_left_as_it_was_found() -> None:
    root, ours = logging.getLogger(), logging.getLogger("flaresemi")
    before = list(root.handlers), ours.level
    _run(_raise(DatasetError("x")))
    assert (list(root.handlers), ours.level) == before


def test_only_the_first_rank_tells_the_story(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("RANK", "1")
    _run(lambda options: logger.info("34 cases"))
    assert capsys.readouterr().err == ""


def test_the_workspace_is_in_the_dataset_unless_named() -> None:
    parser = _parser()
    options = parser.parse_args(["-r", "x", "-d", "data"])
    assert workspace_of(options).root == Path("data/flaresemi")
    assert dataset_words(options) == ["-d", "data"]
    options = parser.parse_args(["-r", "x", "-w", "out"])
    assert workspace_of(options).root == Path("out")
    assert dataset_words(options) == ["-w", "out"]
    assert dataset_words(parser.parse_args(["-r", "x"])) == []


def test_the_next_command_can_be_pasted(capsys: pytest.CaptureFixture) -> None:
    print_next(["flaresemi_train", "COARSE", "0", "-d", "my data"])
    assert capsys.readouterr().out == "\nnext: flaresemi_train COARSE 0 -d 'my data'\n"


def test_folders_of_the_workspace_that_lie_elsewhere_are_told(tmp_path, caplog):
    workspace, scratch = tmp_path / "workspace", tmp_path / "scratch"
    for folder in (workspace / "models" / "fold_0", workspace / "inside", scratch):
        folder.mkdir(parents=True)
    for link, target in (("lists", scratch), ("models/fold_0/FINE", scratch), ("alias", workspace / "inside")):
        (workspace / link).symlink_to(target)
    (workspace / "loop").symlink_to(workspace / "loop")
    with caplog.at_level(logging.INFO):
        opened = open_workspace(argparse.Namespace(dataset=tmp_path, workspace=workspace))
    assert opened.root == workspace
    assert sorted(line.split(" is a link")[0] for line in caplog.messages) == [
        str(workspace / "lists"),
        str(workspace / "models" / "fold_0" / "FINE"),
    ]
    assert all(line.endswith(f"written to {scratch}") for line in caplog.messages)
