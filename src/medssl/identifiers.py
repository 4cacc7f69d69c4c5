"""Identifiers of patients, cases and images: keyed hashes of what the source calls them.

Without the key nobody can go from an identifier back to the source's id, or tell whether a known patient is in a
table. The same key gives the same identifiers everywhere, so that tables made apart can be joined.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from medssl.exit_codes import BadInputError

KEY_VARIABLE = "MEDSSL_PATIENT_KEY"
KEY_FILE_VARIABLE = "MEDSSL_PATIENT_KEY_FILE"
# Known to everyone, so that splits of generated and public sets are the same everywhere. Their ids can be
# enumerated; with this key an identifier hides nothing.
PUBLIC_SECRET = b"medssl: the key of public data sets"
MIN_KEY_BYTES = 16
IDENTIFIER_BYTES = 16  # 128 bits: a collision among 10^9 identifiers has a probability of 10^-21
IDENTIFIER_DIGITS = 2 * IDENTIFIER_BYTES

Level = Literal["patient", "case", "image"]


@dataclass(frozen=True)
class PatientKey:
    """The secret from which identifiers are made.

    Attributes:
        secret: At least 16 bytes; never shown, logged or written except to the key file.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def load(
        cls,
        kind: Literal["public", "private"],
        *,
        key_file: Path | None,
        default_file: Path | None,
        environment: Mapping[str, str],
        create: bool = False,
    ) -> Self:
        """The public key, or the private one from `key_file`, else MEDSSL_PATIENT_KEY, else `default_file`.

        Text that consists of an even number of hexadecimal digits is read as hex, any other as UTF-8.

        Args:
            kind: "public" for generated and public sets, "private" for everything else.
            key_file: The file that the user named; where it is given, nothing else is asked.
            default_file: Where the key lies when the user said nothing.
            environment: The process environment.
            create: Make an absent `default_file` (mode 0600, 256 random bits); never a file that the user named, since
                a wrong name would give other identifiers unseen.

        Raises:
            BadInputError: There is no private key, or it is too short or not text.
        """
        if kind == "public":
            return cls(PUBLIC_SECRET)
        if key_file is not None:
            return cls(_secret_of_named(key_file))
        if KEY_VARIABLE in environment:
            return cls(_parse(environment[KEY_VARIABLE], KEY_VARIABLE))
        secret = None if default_file is None else _read(default_file)
        if secret is None and default_file is not None and create:
            _create(default_file)
            secret = _read(default_file)
        if secret is None:
            absent = "is not set" if default_file is None else "is not set and the default key file does not exist"
            raise BadInputError(
                f"no private patient key: {KEY_VARIABLE} {absent}; set {KEY_VARIABLE} to at least {MIN_KEY_BYTES} "
                f"random bytes (hex or text) or {KEY_FILE_VARIABLE} to a file of them; `key: public` is for generated "
                "and public sets only"
            )
        return cls(secret)

    @property
    def key_id(self) -> str:
        """Which key this is, as 16 hex digits that do not reveal it."""
        return hmac.digest(self.secret, b"medssl key id", "sha256")[:8].hex()

    def identify(self, dataset: str, level: Level, raw_id: str) -> str:
        """The identifier of one patient, case or image, as 32 hex digits; see `identify_all`."""
        return self.identify_all(dataset, level, [raw_id])[0]

    def identify_all(self, dataset: str, level: Level, raw_ids: Iterable[str]) -> list[str]:
        """Identifiers of many patients, cases or images, as 32 hex digits each; see `digests`."""
        digits = self.digests(dataset, level, raw_ids).hex()
        return [digits[i : i + IDENTIFIER_DIGITS] for i in range(0, len(digits), IDENTIFIER_DIGITS)]

    def digests(self, dataset: str, level: Level, raw_ids: Iterable[str]) -> bytes:
        """Identifiers one after another: 128 bits of HMAC-SHA256(key, dataset || level || raw id) each.

        Each of the three parts is preceded by its length in bytes, so that no two triples give one message.
        """
        # HMAC's two hashes (RFC 2104) by hand: the standard library's `hmac` takes twice as long, copies of states
        # that have the key behind them a tenth more, and a table has hundreds of thousands of names.
        inner, outer = _padded_keys(self.secret)
        start = inner + _framed(dataset) + _framed(level)
        sha256 = hashlib.sha256
        found = bytearray()
        for raw_id in raw_ids:
            message = sha256(start + _framed(raw_id)).digest()
            found += sha256(outer + message).digest()[:IDENTIFIER_BYTES]
        return bytes(found)


def _padded_keys(secret: bytes) -> tuple[bytes, bytes]:
    """What HMAC-SHA256's inner and outer hash begin with."""
    block_size = hashlib.sha256().block_size
    key = secret if len(secret) <= block_size else hashlib.sha256(secret).digest()
    padded = key.ljust(block_size, b"\0")
    return bytes(b ^ 0x36 for b in padded), bytes(b ^ 0x5C for b in padded)


def _framed(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes(8, "big") + encoded


def _secret_of_named(key_file: Path) -> bytes:
    secret = _read(key_file)
    if secret is None:
        raise BadInputError(
            f"the patient key file that was named does not exist; set {KEY_FILE_VARIABLE} to an existing file "
            "(`openssl rand -hex 32` makes its content), or unset it"
        )
    return secret


def _read(key_file: Path) -> bytes | None:
    """The secret in the file; None where there is no such file."""
    try:
        text = key_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInputError(
            f"the patient key file cannot be read: {reason}; set {KEY_FILE_VARIABLE} to a file of hex or text"
        ) from None
    return _parse(text, "the patient key file")


def _parse(text: str, source: str) -> bytes:
    text = text.strip()
    is_hex = len(text) % 2 == 0 and all(character in "0123456789abcdefABCDEF" for character in text)
    secret = bytes.fromhex(text) if is_hex else text.encode()
    if len(secret) < MIN_KEY_BYTES:
        raise BadInputError(
            f"{source} holds {len(secret)} bytes{' in hex' if is_hex and secret else ''}; a patient key needs at least "
            f"{MIN_KEY_BYTES}: `openssl rand -hex 32` makes one"
        )
    return secret


def _create(key_file: Path) -> None:
    """Write a new random key, complete or not at all; where another process was faster, its key stays."""
    temporary = key_file.with_name(f".{key_file.name}.{os.getpid()}.tmp")
    try:
        key_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            # Unlike a rename, a link never replaces a key that is already in use.
            os.link(temporary, key_file)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise BadInputError(
            f"the patient key file cannot be created: {error.strerror}; set {KEY_VARIABLE}, or {KEY_FILE_VARIABLE} to "
            "an existing file"
        ) from None
