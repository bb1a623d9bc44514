"""Codes that tell programs what an organ is, whatever it is called: SNOMED CT for the usual ones, by their names.

Source: DICOM PS3.16, CID 7150, 7151, 7159 and 244, as pydicom 3.0 lists them; ribs, muscles and parts of the heart that
these lack: TotalSegmentator, resources/totalsegmentator_snomed_mapping.csv (https://github.com/wasserth/TotalSegmentator).
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from flaresemi.errors import ConfigError, is_one_line, shown
from flaresemi.records import closest, load_json
from flaresemi.sides import read_side

#: Whose codes are ours, for organs that no table names. DICOM: schemes that begin with 99 are private.
PRIVATE_SCHEME = "99FLARESEMI"

#: The longest value, scheme and meaning of a code. Source: DICOM PS3.5, 6.2 (SH, SH, LO).
_LONGEST = {"value": 16, "scheme": 16, "meaning": 64}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A code of a terminology.

    Attributes:
        value: The code itself.
        scheme: The terminology, by DICOM's short name: SCT for SNOMED CT.
        meaning: In words.
    """

    value: str
    scheme: str = "SCT"
    meaning: str

    def __post_init__(self) -> None:
        for field, longest in _LONGEST.items():
            text = getattr(self, field)
            if not text.strip() or len(text) > longest or "\\" in text or not is_one_line(text):
                raise ValueError(f"'{field}' of a code must be 1 to {longest} characters, found '{shown(text)}'")


_ANATOMY = Code(value="91723000", meaning="Anatomical Structure")
_TISSUE = Code(value="85756007", meaning="Tissue")
_ABNORMAL = Code(value="49755003", meaning="Morphologically Abnormal Structure")
_SIDES = {"<": Code(value="7771000", meaning="Left"), ">": Code(value="24028007", meaning="Right")}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrganCode:
    """What an organ is.

    Attributes:
        type: The organ, or what is abnormal.
        category: Of the type: anatomical, tissue, abnormal.
        side: Left or right, where the type does not say it.
        region: The organ that something abnormal is in; its side then is this one's.
    """

    type: Code
    category: Code = _ANATOMY
    side: Code | None = None
    region: Code | None = None

    @property
    def is_private(self) -> bool:
        """Whether only flaresemi knows it."""
        return self.type.scheme == PRIVATE_SCHEME


def code_of(name: str) -> OrganCode:
    """The code of an organ by its name, in any usual spelling; a private one where no table has it.

    `right kidney`, `Kidney_R`, `kidney_right` and `RightKidney` are one organ on one side; `liver tumor` is a neoplasm
    in the liver.
    """
    items, side = read_side(name)
    if len(items) == 1 and not side and items[0][1:] in _SHORT:  # LK
        items, side = (_SHORT[items[0][1:]],), {"l": "<", "r": ">"}.get(items[0][0], "")
    words = [_SAME.get(word, word) for word in items if word not in _IDLE]
    found = _find(words, side)
    if found is not None:
        return found
    abnormal = [word for word in words if word in _ABNORMALITIES]
    if abnormal:
        where = _find([word for word in words if word not in abnormal], side)
        code = Code(value=_ABNORMALITIES[abnormal[0]][0], meaning=_ABNORMALITIES[abnormal[0]][1])
        if where is None:
            return OrganCode(type=code, category=_ABNORMAL)
        return OrganCode(type=code, category=_ABNORMAL, region=where.type, side=where.side)
    return OrganCode(type=Code(value=_private_value(name), scheme=PRIVATE_SCHEME, meaning=name.replace("\\", "/")[:64]))


def _find(words: list[str], side: str) -> OrganCode | None:
    organ = tuple(sorted(words))
    if found := _ORGANS.get(tuple(sorted((*organ, side)))) if side else None:
        return OrganCode(type=found, category=_category(organ))
    found = _ORGANS.get(organ)
    return None if found is None else OrganCode(type=found, category=_category(organ), side=_SIDES.get(side))


def _category(organ: tuple[str, ...]) -> Code:
    return _TISSUE if "fat" in organ else _ANATOMY


def _private_value(name: str) -> str:
    """Letters and digits of a name; where that is not all of it, a number that tells it from others."""
    plain = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    return plain if 0 < len(plain) <= 16 and name.isascii() else f"{plain[:7]}_{zlib.crc32(name.encode()):08X}"


def read_codes(declared: object, organs: tuple[str, ...]) -> dict[str, OrganCode]:
    """The user's own codes, `"codes"` of a dataset.json.

    Args:
        declared: `{"liver": {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}}`; an organ may have `category`
            and `side`, too, of the same form.
        organs: Names that are known.

    Raises:
        ValueError: it is nothing of that kind; the message says what.
    """
    if not isinstance(declared, dict):
        raise ValueError(f'"codes" must be an object like {{"liver": {_EXAMPLE}}}')
    codes = {}
    for name, content in declared.items():
        if name not in organs:
            raise ValueError(f"codes names '{name}', which is not a label{closest(name, organs)}")
        if not isinstance(content, dict):
            raise ValueError(f"codes of '{name}' must be an object like {_EXAMPLE}")
        parts = {key: _read_code(content[key], f"{key} of '{name}'") for key in _PARTS if key in content}
        own = {key: value for key, value in content.items() if key not in _PARTS}
        codes[name] = OrganCode(type=_read_code(own, f"'{name}'"), **parts)
    return codes


_EXAMPLE = '{"value": "10200004", "scheme": "SCT", "meaning": "Liver"}'
_PARTS = ("category", "side")


def _read_code(content: object, what: str) -> Code:
    keys = ("value", "scheme", "meaning")
    if (
        not isinstance(content, dict)
        or set(content) - set(keys)
        or not all(isinstance(content.get(k), str) for k in keys)
    ):
        raise ValueError(f"codes: {what} must have the texts value, scheme and meaning, like {_EXAMPLE}")
    try:
        return Code(**content)
    except ValueError as problem:
        raise ValueError(f"codes: {what}: {problem}") from None


def load_codes(path: Path, organs: tuple[str, ...]) -> dict[str, OrganCode]:
    """The codes that a dataset.json, or a file with its key `codes` alone, gives these organs.

    Raises:
        ConfigError: the file cannot be read, or gives none.
    """
    content = load_json(path, error=ConfigError, fix="correct it there")
    declared = content.get("codes") if isinstance(content, dict) else None
    if declared is None:
        raise ConfigError('this file has no "codes"', where=path, fix=f'write {{"codes": {{"liver": {_EXAMPLE}}}}}')
    try:
        return read_codes(declared, organs)
    except ValueError as problem:
        raise ConfigError(str(problem), where=path) from None


def codes_of(organs: Mapping[str, OrganCode], names: tuple[str, ...]) -> dict[str, OrganCode]:
    """A code for every name: the user's own, or else the one that its name tells."""
    return {name: organs.get(name) or code_of(name) for name in names}


#: Words that say nothing of an organ.
_IDLE = {"of", "the", "and", "gland", "structure", "organ", "bone", "muscle", "nos", "mask", "label", "anatomical"}

#: Other words for the same, in the singular.
_SAME = {
    "kidneys": "kidney", "lungs": "lung", "femurs": "femur", "clavicula": "clavicle", "hips": "hip",
    "adrenals": "adrenal", "suprarenal": "adrenal", "oesophagus": "esophagus", "bowel": "intestine",
    "gut": "intestine", "vertebrae": "vertebra", "veins": "vein", "vena": "vein", "arteries": "artery",
    "bronchi": "bronchus", "eyes": "eye", "globe": "eye", "ribs": "rib", "glands": "gland", "parotis": "parotid",
    "tumour": "tumor", "tumors": "tumor", "neoplasm": "tumor", "cancer": "tumor", "carcinoma": "tumor",
    "lesions": "lesion", "cysts": "cyst", "oedema": "edema", "nodules": "nodule", "haemorrhage": "hemorrhage",
    "metastases": "metastasis", "tumorous": "tumor", "ventricular": "ventricle", "breasts": "breast",
    "cartilages": "cartilage", "brachiocephalic": "innominate", "postcava": "ivc",
}  # fmt: skip

#: Behind a letter for the side.
_SHORT = {"k": "kidney", "ag": "adrenal", "kidney": "kidney", "adrenal": "adrenal", "lung": "lung", "eye": "eye"}

#: What is no organ but in one. Source: CID 7159.
_ABNORMALITIES = {
    "tumor": ("108369006", "Neoplasm"),
    "lesion": ("52988006", "Lesion"),
    "cyst": ("367643001", "Cyst"),
    "edema": ("79654002", "Edema"),
    "necrosis": ("6574001", "Necrosis"),
    "nodule": ("27925004", "Nodule"),
    "mass": ("4147007", "Mass"),
    "hemorrhage": ("50960005", "Hemorrhage"),
    "metastasis": ("14799000", "Neoplasm, Secondary"),
}

#: Value, meaning, and the names of organs; `<` and `>` in a name are left and right, where the code says the side.
_TABLE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("10200004", "Liver", ("liver",)),
    ("64033007", "Kidney", ("kidney",)),
    ("78961009", "Spleen", ("spleen",)),
    ("15776009", "Pancreas", ("pancreas",)),
    ("15825003", "Aorta", ("aorta",)),
    ("7832008", "Abdominal aorta", ("abdominal aorta",)),
    ("113262008", "Thoracic aorta", ("thoracic aorta",)),
    ("64131007", "Inferior vena cava", ("inferior vein cava", "ivc", "inferior cava")),
    ("48345005", "Superior vena cava", ("superior vein cava", "svc")),
    ("23451007", "Adrenal gland", ("adrenal",)),
    ("28231008", "Gallbladder", ("gallbladder", "gall bladder")),
    ("32849002", "Esophagus", ("esophagus",)),
    ("69695003", "Stomach", ("stomach",)),
    ("38848004", "Duodenum", ("duodenum",)),
    ("30315005", "Small intestine", ("small intestine",)),
    ("21306003", "Jejunum", ("jejunum",)),
    ("34516001", "Ileum", ("ileum",)),
    ("14742008", "Large intestine", ("large intestine",)),
    ("71854001", "Colon", ("colon",)),
    ("34402009", "Rectum", ("rectum",)),
    ("53505006", "Anus", ("anus",)),
    ("89837001", "Bladder", ("bladder", "urinary bladder")),
    ("87953007", "Ureter", ("ureter",)),
    ("13648007", "Urethra", ("urethra",)),
    ("41216001", "Prostate", ("prostate",)),
    ("64739004", "Seminal Vesicle", ("seminal vesicle",)),
    ("35039007", "Uterus", ("uterus",)),
    ("15497006", "Ovary", ("ovary",)),
    ("40689003", "Testis", ("testis",)),
    ("76784001", "Vagina", ("vagina",)),
    ("18911002", "Penis", ("penis",)),
    ("76752008", "Breast", ("breast",)),
    ("80891009", "Heart", ("heart",)),
    ("82471001", "Left atrium", ("< atrium", "heart < atrium")),
    ("73829009", "Right atrium", ("> atrium", "heart > atrium")),
    ("87878005", "Left ventricle", ("< ventricle", "heart < ventricle", "< ventricle cavity")),
    ("53085002", "Right ventricle", ("> ventricle", "heart > ventricle", "> ventricle cavity")),
    ("74281007", "Myocardium", ("myocardium", "heart myocardium")),
    ("49848007", "Left Ventricle Myocardium", ("< ventricle myocardium",)),
    ("76848001", "Pericardium", ("pericardium",)),
    ("33626005", "Left auricular appendage", ("< atrial appendage", "< atrium appendage")),
    ("68300000", "Right auricular appendage", ("> atrial appendage", "> atrium appendage")),
    ("41801008", "Coronary artery", ("coronary artery",)),
    ("81040000", "Pulmonary artery", ("pulmonary artery",)),
    ("122972007", "Pulmonary vein", ("pulmonary vein",)),
    ("32764006", "Portal vein", ("portal vein",)),
    ("35819009", "Splenic vein", ("splenic vein",)),
    ("110765007", "Portal vein and splenic vein", ("portal vein splenic vein", "portal splenic vein")),
    ("8993003", "Hepatic vein", ("hepatic vein",)),
    ("76015000", "Hepatic artery", ("hepatic artery",)),
    ("42258001", "Superior mesenteric artery", ("superior mesenteric artery",)),
    ("2841007", "Renal artery", ("renal artery",)),
    ("56400007", "Renal vein", ("renal vein",)),
    ("10293006", "Iliac artery", ("iliac artery",)),
    ("244411005", "Iliac vein", ("iliac vein",)),
    ("73634005", "Common iliac artery", ("common iliac artery",)),
    ("46027005", "Common iliac vein", ("common iliac vein",)),
    ("69105007", "Carotid Artery", ("carotid artery", "carotid")),
    ("32062004", "Common carotid artery", ("common carotid artery",)),
    ("36765005", "Subclavian artery", ("subclavian artery",)),
    ("12691009", "Innominate artery", ("innominate artery", "innominate trunk")),
    ("8887007", "Innominate vein", ("innominate vein",)),
    ("12123001", "Internal jugular vein", ("internal jugular vein",)),
    ("39607008", "Lung", ("lung",)),
    ("45653009", "Upper lobe of lung", ("lung upper lobe",)),
    ("90572001", "Lower lobe of lung", ("lung lower lobe",)),
    ("72481006", "Middle lobe of right lung", ("lung middle lobe", "lung middle lobe >")),
    ("44567001", "Trachea", ("trachea",)),
    ("955009", "Bronchus", ("bronchus",)),
    ("5798000", "Diaphragm", ("diaphragm",)),
    ("72410000", "Mediastinum", ("mediastinum",)),
    ("12738006", "Brain", ("brain",)),
    ("119238007", "Brain Stem", ("brain stem", "brainstem")),
    ("113305005", "Cerebellum", ("cerebellum",)),
    ("2748008", "Spinal cord", ("spinal cord", "spinalcord", "cord")),
    ("244453006", "Optic chiasm", ("optic chiasm", "chiasm", "optic chiasma")),
    ("18234004", "optic nerve", ("optic nerve",)),
    ("81745001", "Eye", ("eye",)),
    ("79652003", "Eyeball", ("eyeball", "eye ball")),
    ("13561001", "Lacrimal gland", ("lacrimal",)),
    ("56329008", "Pituitary", ("pituitary",)),
    ("5366008", "Hippocampus", ("hippocampus",)),
    ("4958002", "Amygdala", ("amygdala",)),
    ("42695009", "Thalamus", ("thalamus",)),
    ("11000004", "Caudate Nucleus", ("caudate nucleus", "caudate")),
    ("89278009", "Putamen", ("putamen",)),
    ("14738005", "Globus pallidus", ("globus pallidus", "pallidum")),
    ("83251001", "Frontal lobe", ("frontal lobe",)),
    ("78277001", "Temporal lobe", ("temporal lobe",)),
    ("16630005", "Parietal lobe", ("parietal lobe",)),
    ("31065004", "Occipital lobe", ("occipital lobe",)),
    ("45289007", "Parotid gland", ("parotid",)),
    ("54019009", "Submandibular gland", ("submandibular", "submandibula")),
    ("69748006", "Thyroid", ("thyroid",)),
    ("91609006", "Mandible", ("mandible",)),
    ("70925003", "Maxilla", ("maxilla",)),
    ("4596009", "Larynx", ("larynx",)),
    ("1307006", "Glottis", ("glottis",)),
    ("54066008", "Pharynx", ("pharynx",)),
    ("360955006", "Nasopharynx", ("nasopharynx",)),
    ("81502006", "Hypopharynx", ("hypopharynx",)),
    ("74262004", "Oral cavity", ("oral cavity",)),
    ("21974007", "Tongue", ("tongue",)),
    ("48477009", "Lip", ("lip", "lips")),
    ("71341001", "Femur", ("femur",)),
    ("2812003", "Head of Femur", ("femur head", "femoral head")),
    ("29836001", "Hip", ("hip",)),
    ("54735007", "Sacrum", ("sacrum",)),
    ("64688005", "Coccyx", ("coccyx",)),
    ("113197003", "Rib", ("rib",)),
    ("51299004", "Clavicle", ("clavicle",)),
    ("79601000", "Scapula", ("scapula",)),
    ("85050009", "Humerus", ("humerus",)),
    ("56873002", "Sternum", ("sternum",)),
    ("50016007", "Costal Cartilage", ("costal cartilage",)),
    ("89546000", "Skull", ("skull",)),
    ("12611008", "Tibia", ("tibia",)),
    ("87342007", "Fibula", ("fibula",)),
    ("64234005", "Patella", ("patella",)),
    ("62413002", "Radius", ("radius",)),
    ("23416004", "Ulna", ("ulna",)),
    ("51282000", "Vertebra", ("vertebra",)),
    ("127954009", "Skeletal muscle", ("skeletal",)),
    ("181674001", "Gluteus maximus muscle", ("gluteus maximus",)),
    ("78333006", "Gluteus medius muscle", ("gluteus medius",)),
    ("75297007", "Gluteus minimus muscle", ("gluteus minimus",)),
    ("244849004", "Deep muscle of back", ("autochthon",)),
    ("68455001", "Iliopsoas muscle", ("iliopsoas",)),
    ("55603005", "Fat", ("fat",)),
    ("67769002", "Subcutaneous fatty tissue", ("subcutaneous fat",)),
    ("39937001", "Skin", ("skin",)),
    ("59441001", "Lymph node", ("lymph node", "lymph nodes")),
    ("65216001", "Cerebrospinal fluid", ("cerebrospinal fluid", "csf")),
    ("389080008", "White matter", ("white matter",)),
    ("389081007", "Gray matter", ("gray matter", "grey matter")),
    ("66720007", "Lateral ventricle", ("lateral ventricle",)),
)  # fmt: skip

#: Ribs 1 to 12, and vertebrae.
_RIBS = (
    ("48535007", "First"), ("78247007", "Second"), ("25888004", "Third"), ("25523003", "Fourth"), ("15339008", "Fifth"),
    ("59558009", "Sixth"), ("24915002", "Seventh"), ("5953002", "Eighth"), ("22565002", "Ninth"), ("77644006", "Tenth"),
    ("58830002", "Eleventh"), ("43993008", "Twelfth"),
)  # fmt: skip
_VERTEBRAE = {
    "c": ("14806007", "39976000", "113205007", "5329002", "36978003", "36054005", "87391001"),
    "t": (
        "64864005", "53733008", "1626008", "73071006", "56401006", "45296009", "62487009", "11068009", "82687006",
        "7610001", "12989004", "23215003",
    ),
    "l": ("66794005", "14293000", "36470004", "11994002", "49668003"),
    "s": ("65985001",),
}  # fmt: skip


def _organs() -> dict[tuple[str, ...], Code]:
    """The table by the words of its names, in alphabetical order."""
    organs = {
        tuple(sorted(name.split())): Code(value=value, meaning=meaning)
        for value, meaning, names in _TABLE
        for name in names
    }
    for number, (value, ordinal) in enumerate(_RIBS, start=1):
        organs[tuple(sorted((str(number), "rib")))] = Code(value=value, meaning=f"{ordinal} rib")
    for letter, values in _VERTEBRAE.items():
        for number, value in enumerate(values, start=1):
            code = Code(value=value, meaning=f"{letter.upper()}{number} vertebra")
            letters = {"l": "<"}.get(letter, letter)  # an L is read as a side
            organs[tuple(sorted((letters, str(number), "vertebra")))] = code
            organs[tuple(sorted((letter, str(number), "vertebra")))] = code
    return organs


_ORGANS = _organs()
