"""The conditions of the generated photographs: how often each occurs, at what age and where."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medssl.data.skin_phantom import lesions
from medssl.data.skin_phantom.lesions import Look


@dataclass(frozen=True)
class Condition:
    """A condition, its share of cases and who has it where.

    Attributes:
        look: Draws it.
        share: Of all cases, 0-1.
        age_years: Mean and standard deviation of the ages.
        sites: Where it is found, all equally often.
    """

    look: Look
    share: float
    age_years: tuple[int, int]
    sites: tuple[str, ...]


_LIMBS = ("arm", "leg", "hand", "foot")
_TRUNK = ("back", "chest", "abdomen")
_SUNNY = ("face", "scalp", "hand", "arm", "back")
# Names as in Azizi et al. 2021 (supplement). A long tail: eczema and acne above 10 % as there, melanoma rare.
CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "Eczema": Condition(lesions.eczema, 0.21, (36, 20), (*_LIMBS, "neck", "abdomen")),
        "Acne": Condition(lesions.acne, 0.16, (23, 7), ("face", "back", "chest")),
        "Psoriasis": Condition(lesions.psoriasis, 0.095, (46, 16), (*_LIMBS, "scalp", "back")),
        "Melanocytic nevus": Condition(lesions.nevus, 0.09, (36, 15), (*_TRUNK, "arm", "leg", "face")),
        "Seborrheic keratosis": Condition(lesions.seborrheic_keratosis, 0.075, (64, 11), (*_TRUNK, "face")),
        "Tinea": Condition(lesions.tinea, 0.065, (34, 17), (*_LIMBS, *_TRUNK)),
        "Basal cell carcinoma": Condition(lesions.basal_cell_carcinoma, 0.06, (68, 10), (*_SUNNY, "neck")),
        "Urticaria": Condition(lesions.urticaria, 0.045, (35, 15), (*_TRUNK, "arm", "leg")),
        "Vitiligo": Condition(lesions.vitiligo, 0.04, (33, 16), ("hand", "face", "arm", "neck")),
        "Melanoma": Condition(lesions.melanoma, 0.03, (61, 13), ("back", "leg", "arm", "face")),
        "Verruca vulgaris": Condition(lesions.verruca, 0.027, (19, 11), ("hand", "foot")),
        "Folliculitis": Condition(lesions.folliculitis, 0.024, (32, 13), ("back", "leg", "chest")),
        "Actinic keratosis": Condition(lesions.actinic_keratosis, 0.02, (70, 9), _SUNNY),
        "Lentigo": Condition(lesions.lentigo, 0.016, (62, 12), ("face", "hand", "arm")),
        "Cyst": Condition(lesions.cyst, 0.013, (42, 14), ("back", "face", "neck")),
        "Tinea versicolor": Condition(lesions.tinea_versicolor, 0.012, (28, 9), ("back", "chest", "neck")),
        "Alopecia areata": Condition(lesions.alopecia_areata, 0.01, (31, 13), ("scalp",)),
        "Scar condition": Condition(lesions.scar, 0.008, (34, 15), ("chest", "arm", "back", "abdomen")),
    }
)
