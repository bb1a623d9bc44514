"""Numbers among the options: whatever their field or flag allows, and one message for the rest."""

import argparse
import typing
from collections.abc import Callable

from flaresemi.errors import shown
from flaresemi.ranges import AtLeastOne, range_of, type_hints


def number(kind: typing.Any) -> Callable[[str], typing.Any]:
    """A type for argparse: a number that fits a type with a range, as `ranges` has them."""
    known = range_of(kind)
    plain = next(each for each in (int, float) if each in _plain_types(kind))

    def read(text: str) -> float:
        try:
            value = plain(text)
        except ValueError:
            value = None
        if value is None or (known is not None and value not in known):
            what = "a whole number" if plain is int else "a number"
            limits = "" if known is None else f", {known}"
            raise argparse.ArgumentTypeError(f"must be {what}{limits}: found '{shown(text, 40)}'")
        return value

    return read


def field_type(cls: type, name: str) -> Callable[[str], typing.Any]:
    """A type for argparse: what a field of a record takes, a number within its range or a text."""
    kind = type_hints(cls)[name]
    return number(kind) if {int, float} & _plain_types(kind) else str


def _plain_types(kind: typing.Any) -> set[typing.Any]:
    parts = typing.get_args(kind)
    return {kind} if not parts else set().union(*map(_plain_types, parts))


#: A number of processes, threads, folds: a type for argparse.
count = number(AtLeastOne)
