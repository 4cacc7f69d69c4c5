"""Where the public tables of dermatological photographs keep what a study needs, and how a study says it of its own.

PAD-UFES-20: Pacheco et al. 2020. HAM10000: Tschandl et al. 2018. Both are known in their original form and in one with
the paths of the images; a set of one's own names its headers in `data.columns`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from medssl.config import ConfigError, DataConfig

# What a column of a table of photographs can be. A lesion is a case whose number is unique within its patient only.
FIELDS = ("image", "patient", "case", "lesion", "condition", "skin_type", "sex", "age", "site")


@dataclass(frozen=True)
class Layout:
    """One form of a table.

    Attributes:
        columns: Header of each field that the table has.
        suffix: What the name of a file has beyond the cell.
        folders: Folders that may hold the images, where cells are bare names; a cell is a path where there are none.
    """

    columns: Mapping[str, str]
    suffix: str = ""
    folders: tuple[str, ...] = ()


_WITH_PATHS = Layout(
    {
        "image": "image_path",
        "patient": "patient_id",
        "case": "case_id",
        "condition": "condition",
        "skin_type": "fitzpatrick",
        "sex": "sex",
        "age": "age",
        "site": "site",
    }
)
# Headers of a patient's id, in lower case without other signs than letters: to overlook one would let a patient be in
# two splits.
_PATIENT_HEADERS = frozenset({"patient", "patientid", "patientidentifier", "patientnumber", "subject", "subjectid"})
LAYOUTS: Mapping[str, tuple[Layout, ...]] = MappingProxyType(
    {
        "pad_ufes": (
            Layout(
                {
                    "image": "img_id",
                    "patient": "patient_id",
                    "lesion": "lesion_id",
                    "condition": "diagnostic",
                    "skin_type": "fitspatrick",
                    "sex": "gender",
                    "age": "age",
                    "site": "region",
                },
                folders=("", "images", "imgs_part_1", "imgs_part_2", "imgs_part_3"),
            ),
            _WITH_PATHS,
        ),
        "ham10000": (
            Layout(
                {
                    "image": "image_id",
                    "lesion": "lesion_id",
                    "condition": "dx",
                    "sex": "sex",
                    "age": "age",
                    "site": "localization",
                },
                suffix=".jpg",
                folders=("", "HAM10000_images_part_1", "HAM10000_images_part_2", "images"),
            ),
            _WITH_PATHS,
        ),
    }
)
# The paper's names where the meaning is the same (spec 2.1), so that sets can be compared and joined.
CONDITION_NAMES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "pad_ufes": {
            "ACK": "Actinic keratosis",
            "BCC": "Basal cell carcinoma",
            "MEL": "Melanoma",
            "NEV": "Melanocytic nevus",
            "SCC": "SCC/SCCIS",
            "SEK": "Seborrheic keratosis",
        },
        "ham10000": {
            "akiec": "Actinic keratosis",
            "bcc": "Basal cell carcinoma",
            "bkl": "Benign keratosis",
            "df": "Dermatofibroma",
            "mel": "Melanoma",
            "nv": "Melanocytic nevus",
            "vasc": "Vascular lesion",
        },
    }
)


def choose(config: DataConfig, header: Collection[str], *, fields: Sequence[str], table: str) -> Layout:
    """The layout whose columns the table has, with those of the study instead where it names some.

    Of several layouts the first that lacks the fewest columns is taken; whether it lacks any is for the caller to see.

    Args:
        config: Kind of the set; `columns` maps a field to a header, or to "" for what the table lacks.
        header: Names of the table's columns.
        fields: Those of FIELDS that the set can have; the others are left out.
        table: Name of the table, for the messages.

    Raises:
        ConfigError: `columns` names what is no field, one header for two fields, both a case and a lesion, or no
            patient where a header sounds like one.
    """
    if unknown := sorted(set(config.columns) - set(fields)):
        raise ConfigError(f"data.columns: {', '.join(unknown)}: no such field; possible: {', '.join(fields)}")
    by_name = Layout({field: field for field in FIELDS if field in header})
    layouts = LAYOUTS.get(config.dataset, (by_name,))
    complete = [_overridden(layout, config.columns, fields) for layout in layouts]
    layout = min(complete, key=lambda candidate: len(set(candidate.columns.values()) - set(header)))
    headers = list(layout.columns.values())
    if doubled := sorted({name for name in headers if headers.count(name) > 1}):
        raise ConfigError(
            f'data.columns: two fields have the header {", ".join(doubled)} of {table}; give each its own, or "" to '
            "the field that the table lacks"
        )
    if "case" in layout.columns and "lesion" in layout.columns:
        raise ConfigError(
            f"data.columns: {table} has both a case ({layout.columns['case']}) and a lesion "
            f'({layout.columns["lesion"]}); keep one: {{lesion: ""}} where case ids are unique, {{case: ""}} where '
            "lesions are numbered anew for each patient"
        )
    if "patient" not in {*layout.columns, *config.columns}:
        _reject_overlooked_patients(header, table)
    return layout


def _reject_overlooked_patients(header: Collection[str], table: str) -> None:
    for number, name in enumerate(header, 1):
        if "".join(filter(str.isalpha, name.casefold())) in _PATIENT_HEADERS:
            # With a digit it might be an id in a table without a header.
            is_header = name.isprintable() and not any(map(str.isdecimal, name))
            shown = f'a column "{name}"' if is_header else f"a column of that kind, its {number}. one"
            raise ConfigError(
                f"data.columns: {table} has {shown}, and no field for the patient is named; give "
                f'{{patient: {name if is_header else "HEADER"}}}, or {{patient: ""}} if it says nothing of the patient'
            )


def _overridden(layout: Layout, columns: Mapping[str, str], fields: Sequence[str]) -> Layout:
    merged = {**layout.columns, **columns}
    return Layout(
        {field: name for field, name in merged.items() if field in fields and name}, layout.suffix, layout.folders
    )
