"""What a check found, as the one line that a person reads."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

MAX_EXAMPLES = 5
ID_DIGITS = 12  # of our identifiers and digests: enough to find one, and no message holds more of a patient's


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        where: Artifact or file, without a path.
        what: What was found and what was expected.
        is_note: Whether nothing is wrong.
    """

    where: str
    what: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{'note: ' if self.is_note else ''}{self.where}: {self.what}"


def examples(identifiers: Iterable[object]) -> str:
    """At most five of `identifiers`, which are in the order to be shown, each cut to its first digits."""
    return ", ".join(str(identifier)[:ID_DIGITS] for identifier in islice(identifiers, MAX_EXAMPLES))
