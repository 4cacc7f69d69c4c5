import hmac
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssl.exit_codes import BadInputError
from medssl.identifiers import KEY_VARIABLE, PatientKey

KEY = PatientKey(bytes(range(32)))


def load(**options):
    return PatientKey.load("private", **{"key_file": None, "default_file": None, "environment": {}, **options})


@given(st.binary(min_size=16, max_size=80), st.text(), st.text())
def test_an_identifier_is_128_bits_of_the_hmac_of_length_prefixed_parts(secret, dataset, raw_id):
    parts = (dataset.encode(), b"patient", raw_id.encode())
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    expected = hmac.digest(secret, message, "sha256")[:16].hex()
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
    key = PatientKey.load("public", key_file=None, default_file=None, environment={KEY_VARIABLE: "ignored"})
    # Pinned: other values would change the splits of every public data set.
    assert key.key_id == "ff54852c28b58a3c"
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


def test_a_named_file_goes_before_the_environment_and_that_before_the_default_file(tmp_path):
    named, default = tmp_path / "named", tmp_path / "default"
    named.write_text("a key that was named")
    default.write_text("a key by default")
    environment = {KEY_VARIABLE: "a key of the environment"}
    both = {"default_file": default, "create": True}
    assert load(key_file=named, environment=environment, **both).secret == b"a key that was named"
    assert load(environment=environment, **both).secret == b"a key of the environment"
    assert load(**both).secret == b"a key by default"


def test_a_named_file_that_is_absent_is_an_error_whatever_else_there_is(tmp_path):
    default = tmp_path / "default"
    default.write_text(KEY.secret.hex())
    environment = {KEY_VARIABLE: KEY.secret.hex()}
    with pytest.raises(BadInputError, match="does not exist; set MEDSSL_PATIENT_KEY_FILE to an existing") as caught:
        load(key_file=tmp_path / "absent", default_file=default, environment=environment, create=True)
    assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "absent").exists()


def test_without_a_private_key_the_error_says_how_to_give_one(tmp_path):
    for default_file in (None, tmp_path / "absent"):
        with pytest.raises(
            BadInputError, match=r"set MEDSSL_PATIENT_KEY to .* 16 .* MEDSSL_PATIENT_KEY_FILE"
        ) as caught:
            load(default_file=default_file)
        assert str(tmp_path) not in str(caught.value)
        assert "--" not in str(caught.value)
    assert not (tmp_path / "absent").exists()


def test_a_key_is_created_once_with_access_for_its_owner_only(tmp_path):
    default_file = tmp_path / "folder" / "key"
    first = load(default_file=default_file, create=True)
    assert stat.S_IMODE(default_file.stat().st_mode) == 0o600
    assert len(first.secret) == 32
    assert load(default_file=default_file, create=True) == first
    assert load(key_file=default_file) == first
    assert load(default_file=tmp_path / "other", create=True) != first
    assert [path.name for path in default_file.parent.iterdir()] == ["key"]


def test_with_a_key_in_the_environment_none_is_created(tmp_path):
    load(default_file=tmp_path / "key", environment={KEY_VARIABLE: KEY.secret.hex()}, create=True)
    assert not (tmp_path / "key").exists()


def test_where_no_key_can_be_created_the_error_offers_what_exists(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInputError, match="MEDSSL_PATIENT_KEY_FILE to") as caught:
        load(default_file=tmp_path / "file" / "key", create=True)
    (tmp_path / "folder").mkdir(mode=0o500)
    if not os.access(tmp_path / "folder", os.W_OK):  # root may write anywhere
        with pytest.raises(BadInputError, match=r"cannot be created: .*; set MEDSSL_PATIENT_KEY, or"):
            load(default_file=tmp_path / "folder" / "key", create=True)
    assert "--key-file" not in str(caught.value)


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
