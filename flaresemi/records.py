"""Frozen dataclasses to and from JSON: strict, atomic, and with the file's name in every complaint."""

import dataclasses
import difflib
import enum
import hashlib
import json
import math
import reprlib
import types
import typing
from pathlib import Path

from flaresemi.errors import FlaresemiError, PlanError, shown
from flaresemi.files import read_text, write_text
from flaresemi.ranges import Range, type_hints
from flaresemi.system_errors import is_shortage

Record = typing.TypeVar("Record")

_AGAIN = "correct the file, or remove it and run the command that wrote it again"


#: Metadata of a field that younger versions of a record have: while it holds its default, the record's hash is that of
#: before it existed. Where that is not what held before, a key "before" has what did: files without the field mean it,
#: and it leaves the hash alone, too, so that it may only be what makes no other result.
CAME_LATER = {"came later": True}


def to_plain(value: object) -> object:
    """Turns a record (nested dataclasses, tuples, enums, dicts) into what `json` writes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    return value


def from_plain(
    cls: type[Record], value: object, *, source: object, error: type[FlaresemiError] = PlanError, at: str = ""
) -> Record:
    """Builds a record of type `cls` from parsed JSON.

    Every key must be known and every field without a default present; types are checked, and the ranges that stand
    beside them; an int is accepted where a float is declared. A field `schema_version` must have the value that is its
    default.

    Args:
        cls: The dataclass to build.
        value: What `json.loads` gave.
        source: The file that the text came from, named in messages.
        error: The exception class to raise.
        at: Path inside the file, for nested records.

    Raises:
        FlaresemiError: (as `error`) an unknown or missing key, or a value of another type or out of its range; it
            names the closest valid key.
    """
    return _convert(cls, value, at, _Complaint(source, error))  # type: ignore[return-value]


def save_record(path: Path, record: object) -> None:
    """Writes a record as indented JSON, atomically."""
    write_text(path, dumps(record))


def dumps(record: object) -> str:
    """The JSON text of a record: one line per field, short lists kept on their line."""
    return _pretty(to_plain(record), 0) + "\n"


def load_record(path: Path, cls: type[Record], *, error: type[FlaresemiError] = PlanError) -> Record:
    """Reads a record that `save_record` wrote or a user edited.

    Raises:
        FlaresemiError: (as `error`) the file is missing, is not JSON, or does not fit `cls`.
    """
    return from_plain(cls, load_json(path, error=error), source=path, error=error)


def holds_record(path: Path, cls: type) -> bool:
    """Whether a file is a record of this kind."""
    try:
        load_record(path, cls)
    except FlaresemiError:
        return False
    return True


def load_json(path: Path, *, error: type[FlaresemiError] = PlanError, fix: str = _AGAIN) -> object:
    """Parses a JSON file, refusing duplicate keys, NaN and trailing text with the file's name in the message.

    Args:
        fix: What to do about a file that is no JSON.
    """
    try:
        text = read_text(path, "utf-8-sig")  # some editors put a byte order mark first
    except FileNotFoundError:
        raise error("file not found", where=path) from None
    except UnicodeDecodeError:
        raise error("not a text file (expected JSON in UTF-8)", where=path, fix=fix) from None
    except OSError as problem:
        if is_shortage(problem):
            raise
        raise error(f"cannot be read: {problem.strerror}", where=path) from None
    try:
        return parse_json(text)
    except json.JSONDecodeError as problem:
        at = shown(text.split("\n")[problem.lineno - 1].strip(), 100)
        what = f"not valid JSON in line {problem.lineno}, column {problem.colno}: {problem.msg}"
        raise error(f"{what}: {at}" if at else what, where=path, fix=fix) from None
    except ValueError as problem:
        raise error(f"not valid JSON: {shown(str(problem), 200)}", where=path, fix=fix) from None


def parse_json(text: str) -> object:
    """Parses JSON, refusing duplicate keys, NaN, trailing text, halves of characters, and what is nested too deeply.

    Raises:
        ValueError: it is not valid.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        if "\\ud" in text or "\\uD" in text:  # perhaps half of a pair of surrogates, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as problem:
        raise ValueError(str(problem)) from None
    return value


def record_hash(record: object, *, without: tuple[str, ...] = ("reasons",)) -> str:
    """First 16 hex digits of the SHA-256 of a record's canonical JSON, leaving out keys that change no result."""
    text = json.dumps(_strip(_hashed(record), without), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _hashed(value: object) -> object:
    """A record as its hash sees it: without younger fields that hold their default, or what held before them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if not _is_silent(field, getattr(value, field.name))]
        return {field.name: _hashed(getattr(value, field.name)) for field in fields}
    if isinstance(value, tuple | list):
        return [_hashed(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _hashed(item) for key, item in value.items()}
    return to_plain(value)


def _is_silent(field: dataclasses.Field, value: object) -> bool:
    if not field.metadata.get("came later"):
        return False
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value in (default, field.metadata.get("before", default))


def closest(word: str, known: typing.Iterable[str]) -> str:
    """A ' (did you mean ...?)' hint for a misspelt word, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


class _Complaint:
    def __init__(self, source: object, error: type[FlaresemiError]) -> None:
        self.source = source
        self.error = error

    def __call__(self, what: str, fix: str = _AGAIN) -> FlaresemiError:
        return self.error(what, where=self.source, fix=fix)


def _convert(cls: object, value: object, at: str, complain: _Complaint) -> object:
    origin = typing.get_origin(cls)
    arguments = typing.get_args(cls)
    if origin is typing.Annotated:
        return _convert_number(arguments, value, at, complain)
    if dataclasses.is_dataclass(cls):
        return _convert_dataclass(cls, value, at, complain)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, at, complain)
    if origin is tuple:
        return _convert_tuple(arguments, value, at, complain)
    if origin is dict:
        if not isinstance(value, dict):
            raise complain(f"{_name(at)} must be an object, found {_shown(value)}")
        return {key: _convert(arguments[1], item, f"{at}.{key}", complain) for key, item in value.items()}
    if origin is typing.Literal:
        if value not in arguments or isinstance(value, bool) != any(isinstance(a, bool) for a in arguments):
            raise complain(f"{_name(at)} must be one of {', '.join(map(repr, arguments))}, found {_shown(value)}")
        return value
    if isinstance(cls, type) and issubclass(cls, enum.Enum):
        try:
            return cls(value)
        except ValueError:
            choices = ", ".join(repr(member.value) for member in cls)
            raise complain(f"{_name(at)} must be one of {choices}, found {_shown(value)}") from None
    return _convert_scalar(cls, value, at, complain)


def _convert_dataclass(cls: type, value: object, at: str, complain: _Complaint) -> object:
    if not isinstance(value, dict):
        raise complain(f"{_name(at)} must be an object, found {_shown(value)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    _refuse_other_version(value, fields, complain)
    for key in value:
        if key not in fields:
            raise complain(f"unknown key {_name(f'{at}.{key}')}{closest(key, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in value and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise complain(f"missing key {_name(f'{at}.{missing[0]}')}")
    hints = type_hints(cls)
    converted = {name: field.metadata["before"] for name, field in fields.items() if "before" in field.metadata}
    converted |= {key: _convert(hints[key], item, f"{at}.{key}", complain) for key, item in value.items()}
    try:
        return cls(**converted)
    except (ValueError, TypeError, ArithmeticError, LookupError) as problem:
        raise complain(f"{_name(at)}: {shown(str(problem), 400)}") from None


def _refuse_other_version(value: dict[str, object], fields: dict[str, dataclasses.Field], complain: _Complaint) -> None:
    """Before anything else: what another version wrote may well have other keys."""
    if "schema_version" not in fields or "schema_version" not in value:
        return
    known, found = fields["schema_version"].default, value["schema_version"]
    if found == known:
        return
    if isinstance(found, int) and isinstance(known, int) and found > known:
        fix = "it was written by a newer flaresemi: update this one"
    else:
        fix = "it was written by an older flaresemi: go on with that one, or move the file away and make it anew"
    raise complain(f"schema_version {_shown(found)} is not known, this flaresemi reads {known}", fix)


def _convert_union(options: tuple, value: object, at: str, complain: _Complaint) -> object:
    if value is None and type(None) in options:
        return None
    solid = [option for option in options if option is not type(None)]
    if len(solid) == 1:
        return _convert(solid[0], value, at, complain)
    for option in solid:
        try:
            return _convert(option, value, at, complain)
        except FlaresemiError:
            continue
    raise complain(f"{_name(at)} has a value of the wrong kind: {_shown(value)}")


def _convert_tuple(arguments: tuple, value: object, at: str, complain: _Complaint) -> tuple:
    if not isinstance(value, list):
        raise complain(f"{_name(at)} must be a list, found {_shown(value)}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{at}[{i}]", complain) for i, item in enumerate(value))
    if len(value) != len(arguments):
        raise complain(f"{_name(at)} must have {len(arguments)} entries, found {len(value)}")
    pairs = enumerate(zip(arguments, value, strict=True))
    return tuple(_convert(kind, item, f"{at}[{i}]", complain) for i, (kind, item) in pairs)


def _convert_scalar(cls: object, value: object, at: str, complain: _Complaint) -> object:
    if cls is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise complain(f"{_name(at)} is too large a number") from None
    if cls in (int, float, str, bool):
        if type(value) is not cls:
            raise complain(f"{_name(at)} must be of type {cls.__name__}, found {_shown(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise complain(f"{_name(at)} must be a finite number, found {_shown(value)}")
        return value
    raise TypeError(f"records cannot hold {cls!r}")


def _convert_number(arguments: tuple, value: object, at: str, complain: _Complaint) -> object:
    kind, *notes = arguments
    number = _convert(kind, value, at, complain)
    for known in notes:
        if isinstance(known, Range) and number not in known:  # type: ignore[operator]
            raise complain(f"{_name(at)} must be {known}, found {_shown(value)}")
    return number


def _name(at: str) -> str:
    return f"'{shown(at.lstrip('.'), 200)}'" if at else "the file"


def _shown(value: object) -> str:
    return shown(_BRIEF.repr(value))


#: Whatever stands in a file, however long and deep, fits a message.
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict, _BRIEF.maxstring = 3, 6, 4, 60


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key '{twice}' stands twice in one object")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _strip(value: object, without: tuple[str, ...]) -> object:
    if isinstance(value, dict):
        return {key: _strip(item, without) for key, item in value.items() if key not in without}
    if isinstance(value, list):
        return [_strip(item, without) for item in value]
    return value


def _pretty(value: object, depth: int, width: int = 120) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or not value or (isinstance(value, list) and len(flat) + 2 * depth <= width):
        return flat
    inner = "  " * (depth + 1)
    if isinstance(value, list):
        lines = [inner + _pretty(item, depth + 1) for item in value]
        return "[\n" + ",\n".join(lines) + "\n" + "  " * depth + "]"
    lines = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + "  " * depth + "}"
