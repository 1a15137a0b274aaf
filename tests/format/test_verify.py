"""`verify`: each kind of damage to the data is found and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from l2q_files import overwrite_tensor, split_file, tensor_bytes, write_small
from llama2q.errors import CorruptDataError
from llama2q.format import L2qFile

W2 = "layers.1.feed_forward.w2.weight"
WK = "layers.0.attention.wk.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("files")
    contents = {}
    for quant in ("int4", "int8", "none"):
        write_small(folder / "x.l2q", quant)
        contents[quant] = (folder / "x.l2q").read_bytes()
    return contents


def damaged(
    originals: dict[str, bytes],
    folder: Path,
    quant: str,
    name: str,
    index: int,
    value: int,
    rehash: bool = True,
) -> str:
    """Set one byte, verify, and return the error's message."""
    path = folder / "x.l2q"
    path.write_bytes(originals[quant])
    overwrite_tensor(path, name, index, value, rehash=rehash)
    with L2qFile(path) as file, pytest.raises(CorruptDataError) as caught:
        file.verify()
    return str(caught.value)


def test_sound_files_and_progress(originals: dict[str, bytes], tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    for quant, content in originals.items():
        path = tmp_path / f"{quant}.l2q"
        path.write_bytes(content)
        calls.clear()
        with L2qFile(path) as file:
            file.verify(lambda *call: calls.append(call))
            assert [name for _, _, name in calls[:-1]] == list(file.tensors)
        assert calls[-1][0] == calls[-1][1] > 0


@pytest.mark.parametrize("quant", ["int4", "int8", "none"])
def test_every_tensor_is_hashed(originals: dict[str, bytes], tmp_path: Path, quant: str) -> None:
    header, data = split_file(originals[quant])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        at = (end - begin) // 2
        changed = data[begin + at] ^ 1
        message = damaged(originals, tmp_path, quant, name, at, changed, rehash=False)
        assert ("not zero" if name.startswith("pad.") else f"{name} hashes to") in message


def test_forbidden_code(originals: dict[str, bytes], tmp_path: Path) -> None:
    message = damaged(originals, tmp_path, "int8", f"{WK}.codes", 65, 0x80)
    assert message.startswith(f"{WK}.codes[0, 1, 1] is -128")
    message = damaged(originals, tmp_path, "int8", "tok_embeddings.weight.codes", 49, 0x80)
    assert message.startswith("tok_embeddings.weight.codes[1, 1] is -128")


@pytest.mark.parametrize("value", [0x7C, 0x7E, 0xFC])
def test_scale_not_finite(originals: dict[str, bytes], tmp_path: Path, value: int) -> None:
    message = damaged(originals, tmp_path, "int4", f"{WK}.scales", 2 * 3 + 1, value)
    assert message == f"{WK}.scales[0, 0, 3] is NaN or infinite"


def test_value_and_norm_not_finite(originals: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "y.l2q"
    path.write_bytes(originals["none"])
    for name in (W2, "norm.weight", "layers.1.ffn_norm.weight", "tok_embeddings.weight"):
        values = tensor_bytes(path, name).view("<f4")
        index = int(np.argmax(values.reshape(-1) != 0))
        # 0x7f in the top byte and the top bit of the next make the exponent 255.
        path.write_bytes(originals["none"])
        overwrite_tensor(path, name, 4 * index + 2, 0x80, rehash=True)
        overwrite_tensor(path, name, 4 * index + 3, 0x7F, rehash=True)
        with L2qFile(path) as file, pytest.raises(CorruptDataError, match="NaN or infinite"):
            file.verify()


def test_padding(originals: dict[str, bytes], tmp_path: Path) -> None:
    # dim 48, hidden_dim 172, vocab_size 37: see numpy_quantizers.SMALL. w2 has K = 192.
    for quant, per_line in (("int4", 8), ("int8", 4)):
        line, column = divmod(172, per_line)
        at = line * 64 + 4 * 5 + column % 4
        data = {"int4": 0x10, "int8": 0x01}[quant]  # int4: column 172 is a high nibble
        header, section = split_file(originals[quant])
        old = section[header[f"{W2}.codes"]["data_offsets"][0] + at]
        message = damaged(originals, tmp_path, quant, f"{W2}.codes", at, old | data)
        assert message == f"{W2}.codes, band 0: padded columns hold a code that is not zero"
    w13 = "layers.0.feed_forward.w1_w3.weight"  # 172 rows: 12 of the last band of each
    for band in (20, 21):
        at = band * (64 // 8) * 64 + 4 * 12
        message = damaged(originals, tmp_path, "int4", f"{w13}.codes", at, 1)
        assert message == f"{w13}.codes: padded rows are not all zero"
        message = damaged(originals, tmp_path, "int4", f"{w13}.scales", 2 * (band * 16 + 15), 1)
        assert message == f"{w13}.scales: padded rows are not all zero"
    at = 4 * (2 * 48 * 16 + 15) + 3  # band 2 of output, column 0, row 47 of 37: -0
    assert "padded rows" in damaged(originals, tmp_path, "none", "output.weight", at, 0x80)


def test_every_fault_is_found(originals: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.l2q"
    path.write_bytes(originals["int8"])
    overwrite_tensor(path, "tok_embeddings.weight.codes", 49, 0x80, rehash=False)
    overwrite_tensor(path, f"{WK}.codes", 65, 0x80, rehash=True)
    overwrite_tensor(path, f"{WK}.scales", 2 * 3 + 1, 0x7C, rehash=True)
    overwrite_tensor(path, "rope.inv_freq", 8, 1, rehash=True)
    with L2qFile(path) as file:
        faults = [str(fault) for fault in file.faults()]
        with pytest.raises(CorruptDataError) as caught:
            file.verify()
    assert [fault.split(" is ")[0] for fault in faults[1:]] == [
        "tok_embeddings.weight.codes[1, 1]",
        f"{WK}.codes[0, 1, 1]",
        f"{WK}.scales[0, 0, 3]",
        "rope.inv_freq",
    ]
    assert faults[0].startswith("tok_embeddings.weight.codes hashes to ")
    assert str(caught.value) == faults[0]


def test_inv_freq(originals: dict[str, bytes], tmp_path: Path) -> None:
    message = damaged(originals, tmp_path, "int4", "rope.inv_freq", 8, 1)
    assert message.startswith("rope.inv_freq is not theta^(-2i / 16)")
