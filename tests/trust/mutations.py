"""Ways to spoil a file: bytes, numbers in a header, lines of text, values in JSON. The same for one seed."""

import copy
import json
import random
import struct

#: Numbers that programs trip over, as they stand in binary headers.
INTEGERS = (
    0,
    1,
    -1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    348,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
)
FLOATS = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 1e-7, 1e38, 3e38, 1e300, 5e-324)

#: What a text header or a list may suddenly say.
WORDS = (
    "", "0", "-1", "1", "3", "5", "11", "50", "2147483647", "2147483648", "4294967296", "1000000", "9" * 20,
    "nan", "inf", "-inf", "1e308", "1e-308", "none", "True", "False", "1 1 1", "1000000 1000000 1000000", "-5 4 3",
    "0 0 0", "(nan,0,0) (0,1,0) (0,0,1)", "(0,0,0) (0,0,0) (0,0,0)", "LOCAL", "LIST", "LIST 3", "../secret.raw",
    "../../../../etc/passwd", "/etc/passwd", "/dev/zero", "%d.raw 1 3 1", ".", "a" * 300, "raw", "gzip", "ascii", "hex",
    "bzip2", "big", "little", "MET_DOUBLE", "MET_CHAR", "MET_LONG_LONG", "MET_OTHER", "MET_STRING", "double", "block",
    "int8", "uint64", "\0", "\ufeff", "é", "\u202e", "'; rm -rf", "$HOME", ": ", "= ", ":=",
)  # fmt: skip

#: Lines that a text header may suddenly have.
LINES = (
    "ElementDataFile = ../secret.raw", "ElementDataFile : ../secret.raw", "data file: ../secret.raw",
    "datafile: ../secret.raw", "data file: LIST", "ElementNumberOfChannels = 1000000", "CompressedData = True",
    "CompressedDataSize = 99999999999999", "CompressedDataSize = -5", "HeaderSize = -1", "HeaderSize = 999999",
    "byte skip: -1", "byte skip: 999999999999", "line skip: 99999999", "BinaryData = False", "space dimension: 9",
    "dimension: 16", "encoding: ascii", "encoding: bzip2", "encoding: gzip", "type: block", "block size: 999999999999",
    "centerings: cell", "kinds: vector domain domain", "measurement frame: (1,0,0) (0,1,0) (0,0,1)", "units: mm",
    "TransformMatrix = 1 2 3", "ElementSpacing = nan 0 -1", "NDims = 9", "ElementSize = 0 0 0", "#",
    'space units: "um" "m" "in"', 'space units: "parsec" "" ""', 'units: "cm" "um" "mm" "mm"', "DistanceUnits = um",
    "DistanceUnits = cubit", "kinds: list domain domain domain", "kinds: domain domain domain list", "kinds: list list",
    "Segment0_Name:=", "Segment7_Layer:=-1", "Segment0_LabelValue:=nan", "Segment0_LabelValue:=99999999999999999999",
    "Segment999999_Name:=spleen", "x:=y", "\0\0\0",
)  # fmt: skip

#: What may stand where another value is expected in JSON.
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**30), 0.5, -0.0, 1e308, 5e-324, float("nan"),
    float("inf"), "", "a", "../x", "/etc/passwd", "a\nb", "\ud800", "\0", "nan", "x" * 5000, [], [0], [[]], [None, {}],
    [1, 2, 3], [0, 0, 0], [-1, -1, -1], [10**9] * 3, [1e300] * 3, {}, {"a": 1}, {"": {}}, {"__class__": "os.system"},
    [[1, 2, 3]] * 50,
)  # fmt: skip


def mutate(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Spoils a file in one to four ways that fit what it is."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        if content[:4] == b"NRRD" or b"NDims" in content[:400]:
            content = _text_header(rng, content) if rng.random() < 0.7 else _bytes(rng, content, others)
        elif content[:1] in (b"{", b"[") and rng.random() < 0.8:
            content = _json(rng, content)
        elif _is_text(content) and rng.random() < 0.7:
            content = _lines(rng, content)
        else:
            content = _bytes(rng, content, others)
    return content


def _bytes(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    data = bytearray(content or b"\0")
    # Most of what is read with care stands at the start.
    at = rng.randrange(min(len(data), 700)) if rng.random() < 0.7 else rng.randrange(len(data))
    kind = rng.randrange(9)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        length = rng.choice((1, 2, 4, 8, 40))
        data[at : at + length] = rng.randbytes(length)
    elif kind in (2, 3):
        data = _number(rng, data, at)
    elif kind == 4:
        del data[rng.choice((at, rng.randrange(len(data)), len(data) - 1)) :]
    elif kind == 5:
        length = rng.choice((1, 8, 64, 4096))
        data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
    elif kind == 6:
        other = rng.choice(others) if others else b""
        start = rng.randrange(len(other) + 1)
        data[at:] = other[start:] if rng.random() < 0.5 else other[start : start + 512]
    elif kind == 7:
        del data[at : at + rng.choice((1, 2, 8, 100))]
    else:
        length = rng.choice((4, 64, 512))
        data[at : at + length] = bytes([rng.choice((0, 255, 32))]) * length
    return bytes(data)


def _number(rng: random.Random, data: bytearray, at: int) -> bytearray:
    size = rng.choice((1, 2, 4, 8))
    order = rng.choice("<>")
    if size > 2 and rng.random() < 0.4:
        value = rng.choice(FLOATS)
        if size == 4 and abs(value) > 3e38 and value not in (float("inf"), float("-inf")):
            value = 3e38
        number = struct.pack(order + ("f" if size == 4 else "d"), value)
    else:
        number = (rng.choice(INTEGERS) % (1 << 8 * size)).to_bytes(size, "little" if order == "<" else "big")
    at -= at % size
    data[at : at + size] = number
    return data


def _text_header(rng: random.Random, content: bytes) -> bytes:
    """Spoils a line of a header, and leaves the voxels behind it."""
    end = content.find(b"LOCAL\n") + 5 if b"NDims" in content[:400] else content.find(b"\n\n")
    end = end if end > 5 else len(content)
    return _lines(rng, content[:end]) + content[end:]


def _lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, rng.choice(lines))
    elif kind == 2:
        lines.insert(at, rng.choice(LINES))
    elif kind == 3:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 4:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
    else:
        separator = next((mark for mark in (" = ", ": ", ",") if mark in lines[at]), " ")
        words = lines[at].split(separator)
        words[rng.randrange(len(words)) if kind == 5 else -1] = rng.choice(WORDS)
        lines[at] = separator.join(words)
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _json(rng: random.Random, content: bytes) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _lines(rng, content)
    text = json.dumps(spoil(rng, value), indent=rng.choice((None, 2)))
    if rng.random() < 0.05:
        text = text.replace("1", rng.choice(("1" * 5000, "NaN", "1e999", "[" * 2000)), 1)
    return text.encode("utf-8", "surrogatepass")


def spoil(rng: random.Random, value: object) -> object:
    """Parsed JSON with one value in it replaced, removed, added or doubled."""
    value = copy.deepcopy(value)
    places: list[tuple[list | dict, object]] = []

    def walk(node: object) -> None:
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))  # type: ignore[arg-type]
            walk(node[key])  # type: ignore[index]

    walk(value)
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(VALUES))
    node, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del node[key]  # type: ignore[arg-type]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(("", "a", "case_id", "schema_version", "x" * 5000, "\ud800", "../x"))] = rng.choice(VALUES)
    elif kind == 2:
        other, name = rng.choice(places)
        node[key] = copy.deepcopy(other[name])  # type: ignore[index]
    else:
        node[key] = copy.deepcopy(rng.choice(VALUES))  # type: ignore[index]
    return value


def _is_text(content: bytes) -> bool:
    try:
        content[:2000].decode("utf-8")
    except UnicodeDecodeError as problem:
        return problem.start > 1900
    return b"\0" not in content[:2000]
