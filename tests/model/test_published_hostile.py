"""Files of weights that are broken, or made to harm: refused with a reason, before anything large is allocated."""

import io
import pickle
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medssl.exit_codes import exit_code
from medssl.model.published import conversion, sstable
from medssl.model.published.conversion import convert
from medssl.model.published.crc32c import crc32c
from medssl.model.published.stored import WeightsError
from tests.model.published_sources import (
    SimclrV2ResNet50,
    WideResNet50,
    entry,
    field,
    scrambled,
    simclr_variables,
    slow_crc32c,
    table,
    table_of,
    varint,
    write_checkpoint,
)

FILTERS = 4
CRIME = "crime.txt"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return scrambled(WideResNet50(FILTERS)).state_dict()


@pytest.fixture(scope="module")
def variables() -> dict[str, np.ndarray]:
    network = scrambled(WideResNet50(FILTERS))
    assert isinstance(network, WideResNet50)
    return simclr_variables(network)


def refused(path: Path, *words: str, **options: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        convert(path, **options)
    assert exit_code(caught.value) == 78
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert str(path.parent) not in message
    return message


class Code:
    """Unpickled, writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "done"))


@pytest.mark.parametrize("kind", ["pickle", "legacy torch", "zip"])
def test_code_in_a_pickle_is_never_run(kind: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    path, held = tmp_path / "weights.pt", {**state, "extra": Code(tmp_path / CRIME)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, "run code", "torch.save(model.state_dict()")
    assert not (tmp_path / CRIME).exists()


def test_a_lightning_checkpoint_with_other_objects_is_refused_with_advice(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save({"state_dict": state, "hyper_parameters": Namespace(lr=0.3)}, tmp_path / "last.ckpt")
    refused(tmp_path / "last.ckpt", "holds more than tensors", "save the weights alone")


def test_programs_and_files_that_hold_no_dictionary_are_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "program.pt")
    refused(tmp_path / "program.pt", "TorchScript")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "holds one list; expected tensors by name")
    refused(tmp_path / "nowhere.pt", "no such file")
    refused(tmp_path, "no such file")


def test_a_tensor_that_claims_more_than_its_file_holds_is_refused_unallocated(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    huge = torch.zeros(1).expand(2**40)
    torch.save(state | {"conv1.weight": huge}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "conv1.weight has shape [1099511627776]; expected at most 2 GiB")


def test_dictionaries_that_hold_themselves_are_entered_once(tmp_path: Path) -> None:
    held: dict[Any, Any] = {"a": torch.zeros(3), 7: torch.zeros(3)}
    held |= {f"self{number}": held for number in range(30)}
    torch.save(held, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "found tensors a; expected")


def test_a_changed_byte_in_torchs_file_is_found(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    at = whole.index(state["layer4.2.conv3.weight"].numpy().tobytes()[:40]) + 7
    (tmp_path / "a.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused(tmp_path / "a.pt", "another checksum than stated")


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _npz(members: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.npy": _npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80")}, "run code"),
        ({"a.npy": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}")}, "shorter or longer"),
        ({"a.npy": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, -1)}", bytes(16))}, "shorter or"),
        ({"a.npy": _npy("__import__('os').abort()")}, "damaged"),
        ({"a.npy": b"\x93NUM"}, "damaged"),
        ({"a.txt": b"text"}, "expected arrays (.npy) alone"),
        ({}, "found 0 tensors"),
        ({"a\n.npy": _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", bytes(4))}, "plain, short"),
    ],
)
def test_harmful_npz_files_are_refused(members: Mapping[str, bytes], words: str, tmp_path: Path) -> None:
    content = _npz(members)
    (tmp_path / "a.npz").write_bytes(content if members else b"PK\x03\x04" + content)
    refused(tmp_path / "a.npz", words)


def test_an_archive_that_unpacks_to_more_than_the_cap_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    monkeypatch.setattr("medssl.model.published.files.MAX_FILE_BYTES", 1_000_000)
    refused(tmp_path / "a.npz", "unpacks to 2000000 bytes; expected at most 1000000")


def test_pieces_of_files_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    writers: dict[str, Callable[[Path], None]] = {
        "a.pt": lambda path: torch.save(state, path),
        "a.safetensors": lambda path: save_file(state, path),
        "a.npz": lambda path: np.savez(path, **{name: t.numpy() for name, t in state.items()}),
    }
    for name, write in writers.items():
        path = tmp_path / name
        write(path)
        whole = path.read_bytes()
        for share in (0.0, 0.001, 0.3, 0.9, 0.999):
            path.write_bytes(whole[: int(share * len(whole))])
            refused(path, name)


def test_bytes_changed_anywhere_in_tensorflows_files_are_found(
    tmp_path: Path, variables: dict[str, np.ndarray]
) -> None:
    prefix = write_checkpoint(tmp_path / "model.ckpt-1", variables)
    rng = np.random.default_rng(0)
    for ending in (".index", ".data-00000-of-00001"):
        path = tmp_path / f"model.ckpt-1{ending}"
        whole = path.read_bytes()
        unguarded = 48 if ending == ".index" else 8  # the footer; the step, which is not read
        for position in rng.integers(0, len(whole) - unguarded, 5):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
            refused(prefix, "checksum")
        for size in (0, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            refused(prefix)
        path.write_bytes(whole)
    convert(prefix)
    (tmp_path / "model.ckpt-1.data-00000-of-00001").unlink()
    refused(prefix, "missing")


def _footer(meta: bytes, index: bytes) -> bytes:
    return (meta + index).ljust(40, b"\0") + struct.pack("<Q", sstable.MAGIC)


END = struct.pack("<II", 0, 1)  # of a block: where its first key begins, and that it is the only whole one


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no table of LevelDB"),
        (b"x" * 100, "no table of LevelDB"),
        (_footer(varint(0) * 2, varint(2**40) + varint(8)), "lies outside the file"),
        (_footer(varint(0) * 2, varint(0) + varint(2**63)), "lies outside the file"),
        (_footer(b"\xff" * 11, b""), "runs over the end"),
        (table([(b"", field(1, 1))], compression=1), "compressed (Snappy)"),
        (table_of([(b"a", varint(5) + varint(1) + varint(0) + b"a" + END)]), "a key of the index runs over its block"),
        (table_of([(b"a", varint(0) + varint(9) + varint(0) + b"a" + END)]), "a key of the index runs over its block"),
        (table_of([(b"a", varint(0) + varint(1) + varint(9) + b"a" + END)]), "a key of the index runs over its block"),
        (table_of([(b"a", struct.pack("<I", 1000))]), "is shorter than it states"),
        (table([(b"", field(1, 0))]), "states 0 files of values"),
        (table([(b"", field(1, 10**9))]), "states 1000000000 files"),
        (table([(b"", field(1, 1) + field(2, 1))]), "big-endian"),
        (table([(b"", b"\x0a\x7f")]), "cannot be read"),
        (table([(b"", b"\x0a\xff")]), "runs over the end"),
        (table([(b"", field(1, 1)), (b"\xff\xfe", b"")]), "is no text"),
        (table([(b"", field(1, 1)), *((b"%06d" % i, b"") for i in range(20_001))], per_block=5000), "more than 20000"),
    ],
)
def test_indices_that_lie_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.index").write_bytes(content)
    (tmp_path / "a.data-00000-of-00001").write_bytes(bytes(8))
    refused(tmp_path / "a", words)


VALUES = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (entry(VALUES, 1), "lies outside its file of values"),
        (entry(VALUES, 2**63), "lies outside its file of values"),
        (entry(VALUES, 0, shard=1), "lies outside its file of values"),
        (entry(VALUES, 0, size=20), "20 bytes for shape [2, 3]"),
        (entry(VALUES, 0) + field(7, b""), "stored in slices"),
    ],
)
def test_entries_that_lie_are_refused(lie: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.index").write_bytes(table([(b"", field(1, 1)), (b"base_model/conv2d/kernel", lie)]))
    (tmp_path / "a.data-00000-of-00001").write_bytes(VALUES.tobytes())
    refused(tmp_path / "a", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"layer2.0.conv1.weight": torch.full((8, 16, 1, 1), torch.nan)},
            ["layer2.0.conv1.weight is not finite in 100.0%", "broken"],
        ),
        ({"layer2.0.bn1.weight": torch.tensor([torch.inf, *[0.5] * 7])}, ["bn1.weight is not finite in 12.5%"]),
        ({"layer2.0.bn1.running_var": torch.full((8,), -1.0)}, ["negative variances"]),
        ({"layer2.0.bn1.weight": torch.ones(8, dtype=torch.long)}, ["no floating-point numbers"]),
        (
            {"layer2.0.bn1.weight": torch.ones(9)},
            ["1 of another shape: layer2.0.bn1.weight [9] (expected, as ours, [8])"],
        ),
        ({"layer9.0.bn1.weight": torch.ones(9)}, ["1 unexpected: layer9.0.bn1.weight"]),
        ({"layer2.0.bn1.weight": None}, ["1 missing: layer2.0.bn1.weight", "are --format, --depth and --width right?"]),
        ({"conv1.weight": torch.zeros(4, 3, 3, 3)}, ["7x7", "(SK)"]),
        ({"conv1.weight": torch.zeros(4, 2, 7, 7)}, ["1 or 3 channels"]),
        ({"conv1.weight": torch.zeros(())}, ["7x7"]),
        ({"layer1.0.conv1.weight": torch.zeros(8, 4, 1, 1)}, ["a wide ResNet"]),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Tensor | None], words: list[str], tmp_path: Path, state: dict[str, Tensor]
) -> None:
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    torch.save(changed, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", *words, form="simclr_v1")


def test_an_error_names_five_tensors_at_most(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({name: t for name, t in state.items() if not name.startswith("layer3")}, tmp_path / "a.pt")
    message = refused(tmp_path / "a.pt", "more", form="torchvision", depth=50)
    assert message.count("layer3") == 5


def test_other_architectures_are_refused_with_the_reason(tmp_path: Path) -> None:
    state = SimclrV2ResNet50(FILTERS).state_dict()
    state["net.0.0.weight"] = torch.zeros(FILTERS // 2, 3, 3, 3)  # the first of three, where kernels are selected
    torch.save({"resnet": state}, tmp_path / "r50_1x_sk1.pth")
    refused(tmp_path / "r50_1x_sk1.pth", "selective kernels (SK)")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "found tensors a; expected those of one of torchvision")


def test_what_is_asked_for_must_be_what_is_found(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "a.pt"
    torch.save(state, path)
    refused(path, "expected abc", sha256="abc")
    refused(path, "missing", form="torchvision", depth=101)
    refused(path, "of another shape", form="torchvision", width=1)
    refused(path, "depth 20 does not exist in format torchvision", form="torchvision", depth=20)


@pytest.mark.parametrize("size", [0, 1, 9, 32_767, 32_768, 32_769, 100_001, 3 * 2**18 + 5])
def test_checksums_are_those_of_others(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert crc32c(data) == google_crc32c.value(data)
    assert size > 40_000 or crc32c(data) == slow_crc32c(data)
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4


def test_every_format_has_one_name() -> None:
    assert len(conversion.FORMS) == len({form.name for form in conversion.FORMS.values()}) == 9
