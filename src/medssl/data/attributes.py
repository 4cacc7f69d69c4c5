"""What a cell of a table of photographs says of the person and the place: sex, skin type, body site.

Each function takes the trimmed text of a cell and raises ValueError or KeyError for one without a meaning, as
`Cells.translate` expects; an unknown attribute is None.
"""

import re
from collections.abc import Mapping

MAX_SITE_CHARACTERS = 64

SEXES: Mapping[str, str | None] = {
    "female": "female",
    "f": "female",
    "male": "male",
    "m": "male",
    "unknown": None,
    "": None,
}
SEX_WORDS = "female, male, F, M, unknown or blank"

SKIN_TYPES = "a Fitzpatrick type from 1 to 6 or from I to VI, unknown, -1 or blank"
_ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
# A minus sign is a hyphen only right behind a word: "FST-2" is 2, "-2" and "type -2" are nothing.
_SKIN_TYPE = re.compile(
    r"(?:(?:fst|fitzpatrick|fitspatrick|skin|phototype|type)(?:[_.-]|[.:]?\s+|:)?)*"
    r"(?:(?P<digit>[1-6])(?:\.0+)?|(?P<roman>iii|ii|iv|i|vi|v))"
)
# -1 is how Fitzpatrick17k (Groh et al. 2021) writes an unknown type.
_UNKNOWN_SKIN_TYPE = re.compile(r"|unknown|-1(?:\.0+)?")

SITES = f"printable text of at most {MAX_SITE_CHARACTERS} characters, unknown or blank"


def sex(text: str) -> str | None:
    """The sex as the index holds it, from a word or its first letter in any case."""
    return SEXES[text.casefold()]


def skin_type(text: str) -> str | None:
    """The Fitzpatrick skin type as "1" to "6", from spellings as 1, 1.0, I, FST-II and "type 3"."""
    lowered = text.casefold()
    if _UNKNOWN_SKIN_TYPE.fullmatch(lowered):
        return None
    match = _SKIN_TYPE.fullmatch(lowered)
    if match is None:
        raise ValueError
    return match["digit"] or _ROMAN[match["roman"]]


def site(text: str) -> str | None:
    """The body site, lower-cased and with single spaces, so that one place has one name."""
    name = " ".join(text.lower().split())
    if len(name) > MAX_SITE_CHARACTERS or not name.isprintable():
        raise ValueError
    return None if name in ("", "unknown") else name
