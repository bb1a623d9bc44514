"""Common to all commands: strict options, log lines on stderr, exit codes and the hint at the next command."""

import argparse
import contextlib
import itertools
import logging
import os
import re
import shlex
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from flaresemi import __version__
from flaresemi.cli.numbers import field_type
from flaresemi.cli.output import ReaderLeft, require_printed, unfailing_output
from flaresemi.errors import ConfigError, FlaresemiError, ToldError, listed, shown, visible
from flaresemi.log_lines import LineFormatter
from flaresemi.machine import raise_file_limit
from flaresemi.records import closest, parse_json
from flaresemi.system_errors import explained
from flaresemi.workspace import Workspace

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
EXIT_STOPPED = 143  # 128 + SIGTERM

_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:(?P<hours>{_NUMBER})h)?(?:(?P<minutes>{_NUMBER})m)?(?:(?P<seconds>{_NUMBER})s)?")

#: Unicode's categories of control characters, of bytes that are no text, and of line ends.
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
_LONGEST_SECONDS = 1e8  # three years


class StrictParser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and names the closest option for a misspelt one.

    It brings `--verbose`, `--quiet` and `--version` along.
    """

    def __init__(self, prog: str, description: str, **settings: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **settings)
        self.register("type", Path, _path)  # whatever says type=Path
        loudness = self.add_mutually_exclusive_group()
        loudness.add_argument("--verbose", action="store_true", help="more log lines, with the module of each")
        loudness.add_argument("--quiet", action="store_true", help="warnings and errors only")
        self.add_argument("--version", action="version", version=f"flaresemi {__version__}")

    def error(self, message: str) -> NoReturn:
        """Prints one message in the form that all errors have, and exits with code 2."""
        _complain(FlaresemiError(message, fix=f"{self.prog} --help lists the options"))
        raise SystemExit(EXIT_USER_ERROR)


class StoppedEarly(Exception):
    """A command was asked to stop (a time limit, preemption) and has saved its state."""


def run(
    command: Callable[[argparse.Namespace], int | None], parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> int:
    """Parses the options, runs a command and turns its end into an exit code.

    Args:
        command: The work; it gets the parsed options, and may return an exit code of its own.
        argv: The words after the program's name; None: those of this process.

    Returns:
        0 when all went well, 2 for what the user can mend, 130 when stopped from the keyboard, 143 when stopped by a
        signal, 141 when what is printed is all that is made and its reader went away. Anything else is our bug and
        leaves as an exception, for which Python prints the traceback and exits with 1.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with unfailing_output():
        try:
            _refuse_unprintable(words)
            _refuse_unknown(parser, words)
            options = parser.parse_args(words)
        except SystemExit as end:  # after --help, --version or a wrong option
            if end.code:
                return EXIT_USER_ERROR
            command, options = _only_print, argparse.Namespace(verbose=False, quiet=False)
        return _end_of(command, options)


def _end_of(command: Callable[[argparse.Namespace], int | None], options: argparse.Namespace) -> int:
    """Runs a command and turns its end into an exit code."""
    raise_file_limit()
    _provide_temporary_folder(options)
    with _log_to_stderr(verbose=options.verbose, quiet=options.quiet):
        try:
            return command(options) or EXIT_OK
        except ToldError:
            return EXIT_USER_ERROR
        except FlaresemiError as error:
            _complain(error)
            return EXIT_USER_ERROR
        except StoppedEarly as stop:
            if _is_first():
                _say(str(stop))
            return EXIT_STOPPED
        except KeyboardInterrupt:
            _say("stopped; start again with the same command to go on")
            return EXIT_INTERRUPTED
        except ReaderLeft:
            return EXIT_BROKEN_PIPE
        except (OSError, MemoryError, RuntimeError) as error:
            trouble = explained(error, where=_output_of(options))
            if trouble is None:
                raise
            logger.debug("where it happened:", exc_info=True)
            _complain(trouble)
            return EXIT_USER_ERROR


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Adds `-d/--dataset` and `-w/--workspace`."""
    parser.add_argument(
        "-d", "--dataset", type=Path, default=Path("."), metavar="DATASET", help="dataset folder (default: this folder)"
    )
    parser.add_argument(
        "-w",
        "--workspace",
        type=Path,
        default=None,
        metavar="WORKSPACE",
        help="folder for everything that is written (default: DATASET/flaresemi)",
    )


def add_field_option(
    group: argparse._ArgumentGroup, name: str, defaults: object, text: str, choices: Sequence[str] | None = None
) -> None:
    """A flag for a field of a record, `defaults`; present among the options only if given."""
    value = getattr(defaults, name)
    group.add_argument(
        flag_of(name),
        type=field_type(type(defaults), name),
        choices=choices,
        default=argparse.SUPPRESS,
        help=f"{text} [{value}]",
    )


def add_trainer_options(group: argparse._ArgumentGroup) -> None:
    """`--trainer` and `--trainer-setting`; present among the options only if given."""
    group.add_argument(
        "--trainer",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="training method: default, live_teacher, the name of an installed one, or package.module:Class [default]",
    )
    group.add_argument(
        "--trainer-setting",
        dest="trainer_settings",
        action=AddSetting,
        default=argparse.SUPPRESS,
        metavar="NAME=VALUE",
        help="a setting of that trainer; repeat for each",
    )


class AddSetting(argparse.Action):
    """Adds NAME=VALUE to a dict; a value that is a JSON number or truth value is one, all others are texts."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        name, equals, text = values.partition("=")
        if not name or not equals:
            raise argparse.ArgumentError(self, f"must be NAME=VALUE: found '{shown(values, 40)}'")
        value: object = text
        with contextlib.suppress(ValueError):
            read = parse_json(text)
            value = read if isinstance(read, bool | int | float) else text
        setattr(namespace, self.dest, (getattr(namespace, self.dest, None) or {}) | {name: value})


def flag_of(name: str) -> str:
    """A field's flag."""
    return f"--{name.replace('_', '-')}"


def add_time_limit_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--time-limit`, for `StopSignals`."""
    parser.add_argument(
        "--time-limit",
        type=duration,
        metavar="8h",
        help="save and stop before this much time has passed, for jobs with a limit",
    )


def duration(text: str) -> float:
    """The seconds of `30m`, `2h`, `1h30m` or `45s`; a type for argparse."""
    match = _DURATION.fullmatch(text)
    if not text or match is None or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"'{shown(text, 40)}' is not a duration; write 30m, 2h, 1h30m or 45s")
    hours, minutes, seconds = (float(part or 0) for part in match.group("hours", "minutes", "seconds"))
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total <= _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"'{shown(text, 40)}' is no time that a command could take")
    return total


def _path(text: str) -> Path:
    """A path; an empty one, as from a variable that is not set, would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty path is given; the current folder is '.'")
    return Path(text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what names trained models: `-m/--model`, `--fold`, `--checkpoint` and `--coarse`."""
    parser.add_argument(
        "-m",
        "--model",
        type=Path,
        metavar="MODEL_FOLDER",
        help="folder of the trained models, wherever it was moved to, what flaresemi_find_best wrote, or a results "
        "folder or exported archive of nnU-Net v2 (default: WORKSPACE/models)",
    )
    parser.add_argument(
        "--fold",
        nargs="+",
        metavar="FOLD",
        help="folds to average (default: 'all' if it is trained, else every finished one; of nnU-Net, numbers first)",
    )
    parser.add_argument("--checkpoint", choices=("final", "best", "latest"), default="final", help="which weights")
    parser.add_argument(
        "--coarse",
        type=Path,
        metavar="MODEL_FOLDER",
        help="use COARSE from another model folder; of a cascade of nnU-Net, its 3d_lowres",
    )


def model_folder_of(options: argparse.Namespace) -> Path:
    """The folder of trained models that the dataset and model options name."""
    return options.model if options.model is not None else workspace_of(options).models


def workspace_of(options: argparse.Namespace) -> Workspace:
    """The workspace that the dataset options name."""
    return Workspace(options.workspace if options.workspace is not None else options.dataset / "flaresemi")


def open_workspace(options: argparse.Namespace) -> Workspace:
    """The workspace that the dataset options name, for writing; says which of its folders lie elsewhere.

    Raises:
        ConfigError: the folder is something else.
    """
    workspace = workspace_of(options)
    if foreign := workspace.foreign():
        raise ConfigError(
            "this folder is no workspace, and holds what would be replaced or mixed with results: "
            f"{listed([path.name for path in foreign])}",
            where=workspace.root,
            fix="name another folder with -w WORKSPACE; it need not be there",
        )
    for path, target in workspace.links_elsewhere().items():
        logger.info("%s is a link: what belongs there is written to %s", path, target)
    return workspace


def dataset_words(options: argparse.Namespace) -> list[str]:
    """The `-d` and `-w` that repeat these options in another command; empty where the defaults do."""
    words: list[str] = []
    if options.dataset != Path("."):
        words += ["-d", str(options.dataset)]
    if options.workspace is not None:
        words += ["-w", str(options.workspace)]
    return words


def print_next(command: str | Sequence[str]) -> None:
    """Prints the command that a user would run next, ready to be pasted into a shell."""
    line = command if isinstance(command, str) else shlex.join(command)
    print(f"\nnext: {line}", flush=True)


class _StderrHandler(logging.Handler):
    """Log records as lines on stderr that leave progress bars whole."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def _log_to_stderr(*, verbose: bool, quiet: bool) -> Iterator[None]:
    """Sends flaresemi's log to stderr while a command runs; other packages' only from WARNING on."""
    ours, root = logging.getLogger("flaresemi"), logging.getLogger()
    level_before = ours.level
    ours.setLevel(logging.WARNING if quiet or not _is_first() else logging.DEBUG if verbose else logging.INFO)
    # A command that runs others (the demo) has set the handler up already.
    handler = None if any(isinstance(each, _StderrHandler) for each in root.handlers) else _StderrHandler()
    if handler is not None:
        handler.setFormatter(LineFormatter(with_module=verbose))
        root.addHandler(handler)
    try:
        yield
    finally:
        ours.setLevel(level_before)
        if handler is not None:
            root.removeHandler(handler)


def _is_first() -> bool:
    """Whether this is the process of its launch that tells the story."""
    return os.environ.get("RANK", "0") == "0"


def _only_print(_: argparse.Namespace) -> None:
    """The work of --help and --version: their text is printed already."""
    require_printed()


def _refuse_unprintable(words: Sequence[str]) -> None:
    """Ends the program with code 2 when a word is no text of one line: a path, say, with bytes that are no UTF-8.

    Libraries in C++ abort the process at such paths, and no record could name them. So they do where the current folder
    has one, or what a link leads to.
    """
    for text in itertools.chain(words, map(_real_path, (".", *words))):
        odd = [char for char in text if unicodedata.category(char) in _NO_TEXT]
        if odd:
            what = "bytes that are no UTF-8" if unicodedata.category(odd[0]) == "Cs" else "a control character"
            fix = "rename the file or folder"
            if sys.getfilesystemencoding() != "utf-8":
                fix += ", or set a locale with UTF-8 (LC_ALL=C.UTF-8)"
            _complain(ConfigError(f"'{shown(text, 300)}' holds {what}", fix=fix))
            raise SystemExit(EXIT_USER_ERROR)


def _real_path(word: str) -> str:
    """Where a word leads to, if it is a path or an option with one."""
    option, _, value = word.partition("=")
    try:
        return os.path.realpath(value if option.startswith("--") else word)
    except OSError:  # the current folder is gone
        return ""


def _refuse_unknown(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Ends the program with code 2 when a `--option` is not one of the parser's, naming the closest one.

    argparse complains about missing options first, which hides that one of them was only misspelt.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    for word in words:
        if word == "--":
            return
        option = word.split("=", 1)[0]
        if option.startswith("--") and option not in known:
            parser.error(f"unknown option '{option}'{closest(option, known)}")


def _provide_temporary_folder(options: argparse.Namespace) -> None:
    """Where the system has no folder for temporary files that can be written to, the command's own folder is one.

    Libraries ask for it. A container may let nothing but the workspace be written to.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        output = _output_of(options) or Path.cwd()
        place = next((each for each in (output, *output.absolute().parents) if each.is_dir()), None)
        os.environ["TMPDIR"] = str(place)  # of the processes that this one starts, too


def _output_of(options: argparse.Namespace) -> Path | None:
    output = getattr(options, "output", None)
    if output is not None:
        return Path(output)
    return workspace_of(options).root if hasattr(options, "workspace") else None


def _complain(error: FlaresemiError) -> None:
    _say(f"error: {error}")


def _say(text: str) -> None:
    tqdm.write(visible(text), file=sys.stderr)
