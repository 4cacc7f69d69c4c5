"""The model registry: versions by reference, and who is champion, in MLflow's registry on SQLite or on a server.

MLflow can move an alias, but not only if it still points where one thought. So who is champion is kept as a list of
moves, the versions of a second registered model, `<name>.history`: MLflow gives versions rising numbers, and no two the
same, on a database and behind a server alike. Each move names the one that it follows. Of two that
follow the same, the one with the lower number counts and the other does not, whoever reads the list; nothing is locked,
so nobody can leave a lock behind. The alias `champion` shows the result to people and to other programs.

No weights are uploaded: a version is a digest, the place of the artifact that holds it, and how to build the network.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from medssl import tracking
from medssl.exit_codes import BadInputError
from medssl.references import Cohort, Reference

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION = "candidate", "champion"  # aliases
REFERENCE_TAG = "medssl.reference"
DIGEST_TAG = "medssl.digest"
URI_TAG = "medssl.uri"
VERDICT_TAG = "medssl.verdict"
REASONS_TAG = "medssl.reasons"
AFTER_TAG = "medssl.compared_after"  # the move that made the champion it was compared with; "0" for none
CHECK_TAG = "medssl.check."  # followed by a number
_MOVE_TAG = "medssl.move"
_TOKEN_TAG = "medssl.token"
_HISTORY = ".history"
_MAX_TAG_CHARS = 5000  # of the column in MLflow's tables
_MAX_VERSIONS = 10_000
_PATIENCE_S = 20.0  # while another process writes to the same SQLite file
_FIRST_WAIT_S = 0.05

P = ParamSpec("P")
R = TypeVar("R")


class OutrunError(BadInputError):
    """Another model became champion since the comparison; the message says what to do."""


@dataclass(frozen=True)
class Version:
    """One registered model.

    Attributes:
        number: Of the version.
        reference: The model.
        uri: Where its artifact lay when it was registered.
        verdict: Of the last comparison; "" for none.
        reasons: Of the verdict.
        compared_after: Number of the move that made the champion it was compared with; 0: there was none.
    """

    number: int
    reference: Reference
    uri: str
    verdict: str
    reasons: str
    compared_after: int


@dataclass(frozen=True)
class Move:
    """A change of champion.

    Attributes:
        number: Of the move; 0 before it is made.
        follows: Number of the move before; 0 for the first.
        version: Of the model that became champion.
        previous: Version that a roll-back brings back; 0 for none.
        why: "better", "first", "approved" or "rolled back".
        cohort: The test set of the first champion, which stays that of all its successors.
    """

    number: int
    follows: int
    version: int
    previous: int
    why: str
    cohort: Cohort

    def as_json(self) -> dict[str, Any]:
        """In JSON types; the number is the list's business."""
        return {key: value for key, value in vars(self).items() if key != "number"} | {"cohort": vars(self.cohort)}


class Registry:
    """The versions of one registered model, and its champions."""

    def __init__(self, name: str, client: "MlflowClient") -> None:
        self.name = name
        self._client = client

    @classmethod
    def from_environment(cls, name: str) -> Self:
        """The registry of the MLflow that MLFLOW_TRACKING_URI names.

        Raises:
            BadInputError: The variable is not set.
        """
        if not tracking.is_on():
            raise BadInputError(
                "MLFLOW_TRACKING_URI is not set; champions are kept in MLflow's model registry: give its address"
            )
        for variable, value in tracking.ENVIRONMENT.items():  # it is asked again by `_patiently`
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient

        return cls(name, MlflowClient())

    def versions(self) -> list[Version]:
        """All versions, in the order of their numbers."""
        listed = self._listed(self.name)
        return [_version(int(one.version), one.tags) for one in listed if REFERENCE_TAG in one.tags]

    def version(self, number: int) -> Version:
        """One version.

        Raises:
            BadInputError: There is none of this number.
        """
        versions = {one.number: one for one in self.versions()}
        if number not in versions:
            raise BadInputError(f"model {self.name} has no version {number}; it has {sorted(versions) or 'none'}")
        return versions[number]

    def register(self, reference: Reference, *, uri: str, run_id: str) -> Version:
        """The version of a model, made unless it is there; it gets the alias `candidate`.

        Args:
            reference: The model.
            uri: Where its artifact lies.
            run_id: MLflow run that made it; "" where it is not known.
        """
        self._create(self.name, "Fine-tuned models by reference: no weights are kept here.")
        known = [one for one in self.versions() if one.reference == reference]
        if known:
            version = known[-1]
        else:
            tags = {
                REFERENCE_TAG: json.dumps(reference.as_json(), sort_keys=True),
                DIGEST_TAG: reference.checkpoint_digest,
                URI_TAG: uri,
            }
            made = self._call("create_model_version", self.name, reference.source, run_id or None, tags=tags)
            version = _version(int(made.version), tags)
        self._call("set_registered_model_alias", self.name, CANDIDATE, str(version.number))
        return version

    def decide(
        self,
        version: Version,
        *,
        verdict: str,
        reasons: Iterable[str],
        checks: Iterable[str],
        note: Sequence[str] = (),
        after: int,
    ) -> Version:
        """Write a decision to a version, in place of an earlier one.

        Args:
            version: Of the candidate.
            verdict: In a word.
            reasons: Sentences.
            checks: Each difference with all its numbers.
            note: Lines of Markdown, shown in place of the reasons; what is too long for MLflow is left out.
            after: Number of the move that made the champion it was compared with; 0: there is none.
        """
        told = "\n".join(reasons)[:_MAX_TAG_CHARS]
        tags = {VERDICT_TAG: verdict, REASONS_TAG: told, AFTER_TAG: str(after)}
        tags |= {f"{CHECK_TAG}{i:03d}": text[:_MAX_TAG_CHARS] for i, text in enumerate(checks, start=1)}
        number = str(version.number)
        present = self._call("get_model_version", self.name, number).tags
        for stale in (key for key in present if key.startswith(CHECK_TAG) and key not in tags):
            self._call("delete_model_version_tag", self.name, number, stale)
        for key, value in tags.items():
            self._call("set_model_version_tag", self.name, number, key, value)
        shown = [f"**{verdict}**", "", *(note or (f"- {line}" for line in told.splitlines()))]
        while len(text := "\n".join(shown)) > _MAX_TAG_CHARS:
            shown.pop()
        self._call("update_model_version", self.name, number, text)
        return replace(version, verdict=verdict, reasons=told, compared_after=after)

    def history(self) -> list[Move]:
        """The moves that count, oldest first."""
        moves: list[Move] = []
        for one in (one for one in self._listed(self.name + _HISTORY) if _MOVE_TAG in one.tags):
            values = json.loads(one.tags[_MOVE_TAG])
            move = Move(int(one.version), **{**values, "cohort": Cohort(**values["cohort"])})
            if move.follows == (moves[-1].number if moves else 0):
                moves.append(move)
        return moves

    def champion(self) -> Move | None:
        """The last move, or None before the first."""
        return next(reversed(self.history()), None)

    def promote(self, version: Version, *, after: Move | None, why: str) -> Move:
        """Make a version champion, if the present one is still that of the move `after`.

        Raises:
            OutrunError: It is another one by now.
        """
        previous, cohort = (after.version, after.cohort) if after else (0, version.reference.cohort)
        return self._move(Move(0, after.number if after else 0, version.number, previous, why, cohort))

    def roll_back(self) -> Move:
        """Make the champion's predecessor champion again; twice goes back two.

        Raises:
            BadInputError: There is no predecessor.
            OutrunError: Another change came first.
        """
        history = self.history()
        if not history or not history[-1].previous:
            raise BadInputError(f"model {self.name} has no earlier champion to go back to; see `medssl promote --list`")
        last = history[-1]
        back = next(move for move in reversed(history[:-1]) if move.version == last.previous)
        return self._move(Move(0, last.number, back.version, back.previous, "rolled back", last.cohort))

    def kept(self) -> set[int]:
        """Versions that must stay usable: the champion, all that roll-backs can bring back, and the candidate."""
        history = self.history()
        aliases = self._call("get_registered_model", self.name).aliases if self._listed(self.name) else {}
        found = {int(aliases[CANDIDATE])} if CANDIDATE in aliases else set()
        return found | {number for move in history for number in (move.version, move.previous) if number}

    def _move(self, move: Move) -> Move:
        """Add a move to the list, see whether it counts, and point the alias at the champion."""
        name, token = self.name + _HISTORY, uuid.uuid4().hex
        self._create(name, f"Who was champion of {self.name}, move by move; not for deployment.")
        tags = {_MOVE_TAG: json.dumps(move.as_json(), sort_keys=True), _TOKEN_TAG: token}
        source = f"medssl-store:/versions/{self.name}/{move.version}"
        # Where an answer was lost the move may be listed twice; the second one then follows a number that is taken.
        self._call("create_model_version", name, source, tags=tags, description=f"version {move.version}: {move.why}")
        counted = {one.number for one in self.history()}
        own = [int(one.version) for one in self._listed(name) if one.tags.get(_TOKEN_TAG) == token]
        self._show_champion()
        made = next((number for number in own if number in counted), None)
        if made is None:
            champion = self.champion()
            raise OutrunError(
                f"version {champion.version if champion else '?'} of {self.name} became champion meanwhile; version "
                f"{move.version} stays a candidate: run promote again, which compares it with the new champion"
            )
        return replace(move, number=made)

    def _show_champion(self) -> None:
        """Point the alias at the last move; read again after writing, since another process may have made one."""
        shown = None
        while (champion := self.champion()) is not None and champion.version != shown:
            self._call("set_registered_model_alias", self.name, CHAMPION, str(champion.version))
            shown = champion.version

    def _create(self, name: str, description: str) -> None:
        from mlflow.exceptions import MlflowException

        if self._call("search_registered_models", f"name = '{name}'"):
            return
        try:
            self._call("create_registered_model", name, description=description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was first
                raise

    def _listed(self, name: str) -> list[Any]:
        found = self._call("search_model_versions", f"name = '{name}'", max_results=_MAX_VERSIONS)
        return sorted(found, key=lambda one: int(one.version))

    def _call(self, method: str, *arguments: object, **options: object) -> Any:
        return _patiently(getattr(self._client, method), *arguments, **options)


def _version(number: int, tags: Mapping[str, str]) -> Version:
    reference = Reference.from_json(json.loads(tags[REFERENCE_TAG]))
    uri, verdict, reasons = (tags.get(key, "") for key in (URI_TAG, VERDICT_TAG, REASONS_TAG))
    return Version(number, reference, uri, verdict, reasons, int(tags.get(AFTER_TAG, 0)))


def _patiently(call: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """The result of `call`, tried again while a database is locked or a number was taken at the same moment.

    Raises:
        RuntimeError: It did not help.
    """
    from mlflow.exceptions import MlflowException

    began_s, wait_s = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return call(*arguments, **options)
        except MlflowException as error:
            if error.error_code not in ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "BAD_REQUEST"):
                raise
            if time.monotonic() + wait_s - began_s > _PATIENCE_S:
                raise RuntimeError("MLflow's model registry does not answer; start it, and try again") from error
        time.sleep(wait_s)
        wait_s *= 2
