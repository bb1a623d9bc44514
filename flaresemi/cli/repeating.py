"""The options of a command, again: for the line that says what comes next."""

import argparse
import json
from typing import Any

from flaresemi.cli.common import duration

#: How much is told, which is nobody's business later.
_LOUDNESS = ("verbose", "quiet")


def repeated(parser: argparse.ArgumentParser, options: argparse.Namespace, *, without: tuple[str, ...]) -> list[str]:
    """The words that give a command the same options again, as far as they differ from the defaults.

    Args:
        parser: Of the command.
        options: What it made of the words.
        without: Options to leave out, by their name in `options`; positional words are left out anyway.
    """
    words: list[str] = []
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        is_given = action.option_strings and value is not None and value != action.default
        if not is_given or action.dest in (*without, *_LOUDNESS):
            continue
        flag = action.option_strings[0]
        if isinstance(action, argparse.BooleanOptionalAction):
            words.append(flag if value else action.option_strings[1])
        elif action.nargs == 0:
            words.append(flag)
        elif isinstance(value, dict):
            for name, each in value.items():
                words += [flag, f"{name}={each if isinstance(each, str) else json.dumps(each)}"]
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif isinstance(value, tuple):  # axes
            words += [flag, "".join("zyx"[axis] for axis in value) or "none"]
        else:
            words += [flag, _duration(value) if action.type is duration else str(value)]
    return words


def for_prediction(options: argparse.Namespace) -> list[str]:
    """What `flaresemi_predict` takes of the machine as a training did."""
    words = [] if options.device == "auto" else ["--device", options.device]
    return [*words, "--gpus", str(options.gpus)] if options.gpus > 1 else words


def _duration(seconds: Any) -> str:
    """As `duration` reads it: 8h, 1h30m, 90.5s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = ((hours, "h"), (minutes, "m"), (round(rest, 3), "s"))
    return "".join(f"{number:.10g}{unit}" for number, unit in parts if number)
