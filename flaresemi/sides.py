"""Left and right in the names of organs: which of them change places in a mirrored patient."""

import collections
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence

from flaresemi.errors import listed

#: Words for a side, in the languages that label maps are named in. What follows None says a side only where another
#: organ has the opposite one; alone it may be anything.
_LEFT = (
    "left",
    "l",
    "lt",
    "sin",
    "sinister",
    "sinistra",
    "sinistrum",
    "sinistro",
    "links",
    "linke",
    "linker",
    "linkes",
    "linken",
    "gauche",
    "izquierdo",
    "izquierda",
    "esquerdo",
    "esquerda",
    "左",
    None,
    "li",
    "sx",
    "sn",
    "lh",
    "lhs",
    "lft",
    "izq",
)
_RIGHT = (
    "right",
    "r",
    "rt",
    "dex",
    "dext",
    "dexter",
    "dextra",
    "dextrum",
    "destro",
    "destra",
    "rechts",
    "rechte",
    "rechter",
    "rechtes",
    "rechten",
    "droit",
    "droite",
    "derecho",
    "derecha",
    "direito",
    "direita",
    "右",
    None,
    "re",
    "dx",
    "rh",
    "rhs",
    "rgt",
    "der",
)

_SIDES = {word: "<" for word in _LEFT if word} | {word: ">" for word in _RIGHT if word}
_CERTAIN = {word for words in (_LEFT, _RIGHT) for word in words[: words.index(None)]}
_OPPOSITE = {"<": ">", ">": "<"}

#: Words that stand at the start or end of another (kidneyleft), and words that only seem to hold one.
_JOINED = ("left", "right", "links", "rechts")
_NO_SIDE = {"cleft", "leftover", "bright", "upright", "outright", "wright", "fright", "righteous", "rightmost"}

#: What everybody has on both sides, as it is written behind or before a letter for the side.
_OF_TWO = {
    "k",
    "ki",
    "kid",
    "kidney",
    "ag",
    "adr",
    "adrenal",
    "lung",
    "eye",
    "hip",
    "femur",
    "tibia",
    "fibula",
    "humerus",
    "radius",
    "ulna",
    "scapula",
    "clavicula",
    "clavicle",
    "parotid",
    "breast",
    "ureter",
    "ovary",
    "testis",
    "tonsil",
    "thalamus",
    "hippocampus",
    "cochlea",
    "iliopsoas",
    "gluteus",
}

#: Behind an L that means lumbar.
_SPINAL = {"spine", "spinal", "vertebra", "vertebrae", "vertebral"}

_UPPER = "A-ZÀ-ÖØ-Þ"
_LOWER = "a-zß-öø-ÿ"

#: A side in Chinese; an abbreviation before a word (LKidney); a word; an abbreviation; a number; any other letters.
_WORD = re.compile(
    rf"[左右]|[{_UPPER}]+(?=[{_UPPER}][{_LOWER}])|[{_UPPER}]?[{_LOWER}]+|[{_UPPER}]+|[0-9]+|[^\W\d_左右{_UPPER}{_LOWER}]+"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The sides in the names of organs.

    Attributes:
        pairs: Names that differ in the side only, as (right, left), in the order of the right ones.
        unpaired: Names that speak of a side and have no partner.
    """

    pairs: tuple[tuple[str, str], ...]
    unpaired: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A name, understood.

    Attributes:
        items: Its words in small letters, sides as `<` and `>`.
        is_certain: Whether a word of it says a side even where no organ has the opposite one.
    """

    items: tuple[str, ...]
    is_certain: bool

    @property
    def is_sided(self) -> bool:
        """Whether it lies on one side; what names left as often as right does not."""
        return self.items.count("<") != self.items.count(">")


def find_sides(names: Sequence[str]) -> Sides:
    """Tells which organs are a left and a right one, by the usual spellings of their names.

    `RightKidney`, `kidney_left`, `kidney (L)`, `Niere links`, `LK` and `rkidney` are understood, and partners may be
    written differently from each other. A letter within a word is a side where the partner exists: there is a `liver`
    but no `river`. What names both sides (`left and right lung`) is its own partner.
    """
    read = {name: _read(name) for name in names}
    partners: dict[str, str] = {}
    for order in (tuple, sorted):  # first by the words as they stand, then `left kidney` and `Kidney_R`
        _pair_by_words({name: each for name, each in read.items() if name not in partners}, order, partners)
    without = [name for name in names if not read[name].is_sided and name not in partners]
    _pair_by_letter(without, partners)
    by_letter = any(name in partners for name in without)
    return Sides(
        pairs=tuple((name, partners[name]) for name in names if name in partners and _is_right(name, partners, read)),
        unpaired=tuple(
            name for name in names if name not in partners and _speaks_of_side(name, read[name], by_letter=by_letter)
        ),
    )


def read_side(name: str) -> tuple[tuple[str, ...], str]:
    """The words of an organ's name in small letters, without those for a side, and the side.

    Returns:
        The side is `<` for left, `>` for right, and empty where the name says none or both.
    """
    items = _read(name).items
    sides = {item for item in items if item in "<>"}
    return tuple(item for item in items if item not in sides), sides.pop() if len(sides) == 1 else ""


def mirroring_told(names: Sequence[str], pairs: Sequence[tuple[str, str]] | None) -> str:
    """The effect of mirroring left to right on these organs.

    Args:
        names: All organs.
        pairs: Those that change places; None: it is not known which.
    """
    if pairs is None:
        unpaired = find_sides(names).unpaired
        why = f"{listed(unpaired)} without a partner" if unpaired else "mirror_pairs in dataset.json says so"
        return f"images are not mirrored left to right: {why}"
    if not pairs:
        return "no organ has a partner on the other side: labels of images mirrored left to right stay as they are"
    told = ", ".join(f"{right} and {left}" for right, left in pairs)
    return f"{told} change places where an image is mirrored left to right"


def mirroring_caution(names: Sequence[str], pairs: Sequence[tuple[str, str]] | None) -> tuple[str, str] | None:
    """Where the names of organs speak of sides and the pairs that were settled do not; None: nowhere.

    Returns:
        What is the matter, and what to do about it.
    """
    sides = find_sides(names)
    if pairs is None:
        if not sides.unpaired:
            return None
        what = f"left and right: {listed(sides.unpaired)} without a partner, so images are not mirrored left to right"
        ready = json.dumps([list(pair) for pair in sides.pairs], ensure_ascii=False)
        remedy = (
            f'if the other organs may be mirrored as they are, say so in dataset.json: "mirror_pairs": {ready}; '
            "or leave it like this, which is right but has fewer images to learn from"
        )
        return what, remedy
    settled = {frozenset(pair) for pair in pairs}
    missing = [pair for pair in sides.pairs if frozenset(pair) not in settled]
    if not missing:
        return None
    told = listed([f"{right} and {left}" for right, left in missing])
    what = f"left and right: {told}, by name, but mirroring does not exchange them, which teaches the wrong sides"
    return what, "name them in dataset.json's mirror_pairs, or leave mirror_pairs out; then plan anew with --replan"


def _read(name: str) -> _Reading:
    items: list[str] = []
    is_certain = False
    words = list(_WORD.finditer(name))
    for match, following in zip(words, [*words[1:], None], strict=True):
        word = match.group().lower()
        behind = name[match.end() : match.end() + 1]
        joined = next((side for side in _JOINED if word not in _NO_SIDE and word.startswith(side)), None)
        if word in _SIDES and not (len(word) == 1 and behind in {"'", "’"}):  # l'aorte
            items.append(_SIDES[word])
            is_lumbar = len(word) == 1 and (behind.isdigit() or (following and following.group().lower() in _SPINAL))
            is_certain |= word in _CERTAIN and not is_lumbar
        elif joined is not None:
            items += [_SIDES[joined], word.removeprefix(joined)]
            is_certain = True
        elif word not in _NO_SIDE and word.endswith(_JOINED):
            side = next(side for side in _JOINED if word.endswith(side))
            items += [word.removesuffix(side), _SIDES[side]]
            is_certain = True
        else:
            items.append(word)
    return _Reading(items=tuple(items), is_certain=is_certain)


def _pair_by_words(
    read: dict[str, _Reading], order: Callable[[Sequence[str]], Sequence[str]], partners: dict[str, str]
) -> None:
    """Adds the names whose words are each other's mirror image, where no third one could be meant."""
    alike: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for name, reading in read.items():
        alike[tuple(order(reading.items))].append(name)
    for items, one in alike.items():
        other = alike.get(tuple(order([_OPPOSITE.get(item, item) for item in items])), [])
        if len(one) == len(other) == 1 and one != other:
            partners[one[0]] = other[0]


def _pair_by_letter(names: Sequence[str], partners: dict[str, str]) -> None:
    """Adds the names that differ in an l and an r at the start or end of a word: LK and RK, Eye_AL and Eye_AR."""
    spelled = collections.Counter(name.lower() for name in names)
    known = {name.lower(): name for name in names if spelled[name.lower()] == 1}
    others = {name: {known[word] for word in _other_letters(name) if word in known} for name in known.values()}
    for name, candidates in others.items():
        if len(candidates) == 1 and others[other := next(iter(candidates))] == {name}:
            partners[name] = other


def _other_letters(name: str) -> Iterator[str]:
    """The name in small letters, with one l or r at the start or end of a word exchanged."""
    small, swap = name.lower(), {"l": "r", "r": "l"}
    for match in re.finditer(r"[^\W\d_]+", small):
        for at in {match.start(), match.end() - 1}:
            if small[at] in swap:
                yield small[:at] + swap[small[at]] + small[at + 1 :]


def _is_right(name: str, partners: dict[str, str], read: dict[str, _Reading]) -> bool:
    items = read[name].items
    if read[name].is_sided:
        return items.count(">") > items.count("<")
    if ">" in items:  # as often as the left side: `left lung, right part`
        return items.index(">") < items.index("<")
    pair = zip(name.lower(), partners[name].lower(), strict=True)
    return next(one == "r" for one, other in pair if one != other)


def _speaks_of_side(name: str, reading: _Reading, *, by_letter: bool) -> bool:
    """Whether a name without a partner is that of an organ on one side.

    Args:
        by_letter: Other organs have letters for their sides: among LUL, LLL, RUL and RLL, an RML is a right one, too.
    """
    if reading.is_sided:
        return reading.is_certain
    if any(
        (item[0] in "lr" and item[1:] in _OF_TWO) or (item[-1] in "lr" and len(item) > 4 and item[:-1] in _OF_TWO)
        for item in reading.items
    ):
        return True
    return by_letter and re.fullmatch(r"[LR][A-Z]{1,3}", name) is not None
