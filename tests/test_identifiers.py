import hashlib
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.exit_codes import BadInputError
from medssl.identifiers import KEY_VARIABLE, PatientKey

KEY = PatientKey(bytes(range(32)))


def hmac_sha256_of_rfc_2104(key, message):
    block = hashlib.sha256(key).digest() if len(key) > 64 else key
    block = block.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).digest()


def load(**options):
    return PatientKey.load("private", **{"key_file": None, "environment": {}, **options})


@given(st.binary(min_size=16, max_size=80), st.text(), st.text())
def test_an_identifier_is_128_bits_of_the_hmac_of_length_prefixed_parts(secret, dataset, raw_id):
    parts = (dataset.encode(), b"patient", raw_id.encode())
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    expected = hmac_sha256_of_rfc_2104(secret, message)[:16].hex()
    assert PatientKey(secret).identify(dataset, "patient", raw_id) == expected


def test_neither_data_set_nor_level_nor_a_shifted_boundary_gives_the_same_identifier():
    identifiers = {
        KEY.identify("ab", "patient", "c"),
        KEY.identify("a", "patient", "bc"),
        KEY.identify("abpatient", "patient", "c"),
        KEY.identify("ab", "case", "c"),
        KEY.identify("ab", "image", "c"),
        PatientKey(bytes(32)).identify("ab", "patient", "c"),
    }
    assert len(identifiers) == 6


def test_many_identifiers_are_those_of_each_alone():
    raw_ids = [f"patient{i:05d}" for i in range(50)]
    assert KEY.identify_all("set", "patient", raw_ids) == [KEY.identify("set", "patient", raw) for raw in raw_ids]


def test_the_public_key_is_the_same_on_every_machine_and_needs_no_secret():
    key = PatientKey.load("public", key_file=None, environment={KEY_VARIABLE: "ignored"})
    assert key.key_id == hmac_sha256_of_rfc_2104(b"medssl: the key of public data sets", b"medssl key id")[:8].hex()
    # Pinned: another value would change the splits of every public data set.
    assert key.identify("demo", "patient", "patient00001") == "fe20b6e5ceb44ae8617877c10efd2956"


def test_the_secret_is_not_in_the_representation_of_a_key():
    key = PatientKey(b"correct horse battery staple")
    assert "horse" not in f"{key!r} {key}"
    assert len(key.key_id) == 16
    assert key.key_id != KEY.key_id


def test_hex_and_text_are_both_keys_and_surrounding_space_does_not_count(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text(f" {KEY.secret.hex()}\n")
    assert load(key_file=key_file) == KEY
    assert load(environment={KEY_VARIABLE: KEY.secret.hex().upper()}) == KEY
    assert load(environment={KEY_VARIABLE: "correct horse battery"}).secret == b"correct horse battery"


def test_the_key_file_goes_before_the_environment(tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text(KEY.secret.hex())
    assert load(key_file=key_file, environment={KEY_VARIABLE: "correct horse battery"}) == KEY


def test_without_a_private_key_the_error_says_how_to_give_one(tmp_path):
    for key_file in (None, tmp_path / "absent"):
        with pytest.raises(BadInputError, match=r"--key-file FILE or set MEDSSL_PATIENT_KEY .* 16") as caught:
            load(key_file=key_file)
        assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "absent").exists()


def test_a_key_is_created_once_with_access_for_its_owner_only(tmp_path):
    key_file = tmp_path / "folder" / "key"
    first = load(key_file=key_file, create=True)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert len(first.secret) == 32
    assert load(key_file=key_file, create=True) == first
    assert load(key_file=tmp_path / "other", create=True) != first
    assert [path.name for path in key_file.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("text", ["", "short", "0123456789abcdef", "fifteen letters"])
def test_a_short_key_is_refused_without_being_shown(text):
    with pytest.raises(BadInputError, match=r"MEDSSL_PATIENT_KEY holds \d+ bytes.* at least 16") as caught:
        load(environment={KEY_VARIABLE: text})
    assert not text or text not in str(caught.value)


def test_a_key_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "key").write_bytes(b"\xff" * 32)
    with pytest.raises(BadInputError, match="not UTF-8 text"):
        load(key_file=tmp_path / "key")
    with pytest.raises(BadInputError, match="key file cannot be read"):
        load(key_file=tmp_path)
