"""Saved sessions: go on where they were, and damaged or foreign files are refused."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from llama2q import Llama
from llama2q.errors import ClosedError, NonFiniteError, SessionFileError
from llama2q.format.header import LENGTH_BYTES, build_header, parse_header
from llama2q.kv_blocks import BLOCK
from llama2q.sessions import store

SAMPLING: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 10}


@pytest.fixture(scope="module", params=["f32", "f16", "int8"])
def mini(request: pytest.FixtureRequest, mini_file: Path) -> Iterator[Llama]:
    with llama2q.load(mini_file, kv_dtype=request.param, n_ctx=512) as llm:
        yield llm


@pytest.fixture
def other(mini_file: Path, mini: Llama) -> Iterator[Llama]:
    """Another load of the same model: its cache is empty."""
    with llama2q.load(mini_file, kv_dtype=mini.engine.kv_dtype, n_ctx=512) as llm:
        yield llm
        assert llm.engine.pool.n_available == llm.engine.pool.n_blocks


def words(llm: Llama, n_tokens: int) -> list[int]:
    return llm.tokenizer.encode("The king of the land said that she was old. " * 50)[:n_tokens]


@pytest.mark.parametrize("n_tokens", [1, 64, 200])
def test_goes_on_where_it_was(mini: Llama, other: Llama, tmp_path: Path, n_tokens: int) -> None:
    path = tmp_path / "a.session"
    with mini.session() as session, other.session() as loaded:
        session.append(words(mini, n_tokens))
        session.generate(**SAMPLING)
        session.save(path)
        loaded.load(path)
        assert loaded.token_ids == session.token_ids
        found, expected = (s.generate("and", **SAMPLING) for s in (loaded, session))
        assert (found.text, found.token_ids) == (expected.text, expected.token_ids)
        assert found.usage.cached_tokens == expected.usage.cached_tokens > n_tokens


def test_nothing_remains_of_what_was_taken_back(mini: Llama, tmp_path: Path) -> None:
    """The file depends on the text alone, not on what stood in its last block before."""
    paths = tmp_path / "rewound.session", tmp_path / "plain.session"
    ids = words(mini, 90)
    with mini.session() as rewound, mini.session() as plain:
        rewound.append(ids)
        rewound.rewind(70)
        rewound.append(ids[70:72])
        plain.append(ids[:72])
        rewound.save(paths[0])
        plain.save(paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_same_bytes(mini: Llama, other: Llama, tmp_path: Path) -> None:
    """A session that was loaded is saved as it was."""
    with mini.session() as session, other.session() as loaded:
        session.append(words(mini, 100))
        session.save(tmp_path / "a")
        loaded.load(tmp_path / "a")
        loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_text_that_was_rewound(mini: Llama, other: Llama, tmp_path: Path) -> None:
    ids = words(mini, 150)
    with mini.session() as session, other.session() as loaded:
        session.append(ids)
        session.rewind(100)
        session.save(tmp_path / "a")
        loaded.load(tmp_path / "a")
        assert loaded.token_ids == tuple(ids[:100])
        assert np.array_equal(loaded.append([7]), other.logits([*ids[:100], 7])[-1])


def test_empty_session(mini: Llama, other: Llama, tmp_path: Path) -> None:
    with mini.session() as session, other.session() as loaded:
        session.save(tmp_path / "a")
        loaded.append([1, 5])
        loaded.load(tmp_path / "a")
        assert loaded.token_ids == ()


def test_text_whose_blocks_were_lost(mini: Llama, other: Llama, tmp_path: Path) -> None:
    with mini.session() as session, other.session() as loaded:
        session.append(words(mini, 100))
        session._text._sequence.release()  # type: ignore[union-attr]
        session.save(tmp_path / "a")
        loaded.load(tmp_path / "a")
        assert loaded.token_ids == session.token_ids
        assert np.array_equal(loaded.append([7]), session.append([7]))


def test_loaded_blocks_are_shared_with_nobody_but_forks(
    mini: Llama, other: Llama, tmp_path: Path
) -> None:
    """A forged file must not change what other calls give."""
    ids = words(mini, 200)
    with mini.session() as session, other.session() as loaded:
        session.append(ids)
        session.save(tmp_path / "a")
        loaded.load(tmp_path / "a")
        loaded.append([5] * BLOCK)
        assert other.generate([*ids, *[5] * 100], max_tokens=1).usage.cached_tokens == 0
        with loaded.fork() as fork:
            fork.append([6] * BLOCK)
    assert other.generate([*ids, *[5] * BLOCK, 7], max_tokens=1).usage.cached_tokens > 0
    assert other.generate([*ids, *[6] * BLOCK, 7], max_tokens=1).usage.cached_tokens <= 192


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_only_the_owner_can_read_it(mini: Llama, tmp_path: Path) -> None:
    with mini.session() as session:
        session.save(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_failed_save_leaves_the_file_that_was_there(
    mini: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mini.session() as session:
        session.append([1])
        session.save(tmp_path / "a")
        before = (tmp_path / "a").read_bytes()

        def fail(block: int) -> None:
            raise OSError("disk full")

        session.append([5])
        monkeypatch.setattr(mini.engine, "read_block", fail)
        with pytest.raises(OSError, match="disk full"):
            session.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# --- files that are refused -------------------------------------------------------------------


@pytest.fixture
def saved(mini: Llama, tmp_path: Path) -> Path:
    with mini.session() as session:
        session.append(words(mini, 70))
        session.save(tmp_path / "good")
    return tmp_path / "good"


def refused(llm: Llama, path: Path, message: str) -> None:
    """The session is as it was, and no block is held."""
    with llm.session() as session:
        session.append([1, 5])
        with pytest.raises(SessionFileError, match=message) as caught:
            session.load(path)
        assert str(path) in str(caught.value)
        assert session.token_ids == (1, 5)


def edited(path: Path, change: Callable[[dict[str, Any]], None], *, name: str = "bad") -> Path:
    """Change the header's JSON, keeping it canonical; the data stays."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:LENGTH_BYTES], "little")
    header = json.loads(raw[LENGTH_BYTES : LENGTH_BYTES + length])
    change(header)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % 4096)
    bad = path.with_name(name)
    bad.write_bytes(
        len(text).to_bytes(LENGTH_BYTES, "little") + text + raw[LENGTH_BYTES + length :]
    )
    return bad


@pytest.mark.parametrize("where", [0, 9, 4096, 4097, 4500, 50_000, -40, -1])
def test_flipped_bits(mini: Llama, saved: Path, where: int) -> None:
    raw = bytearray(saved.read_bytes())
    raw[where] ^= 1
    saved.write_bytes(raw)
    refused(mini, saved, ".")


@pytest.mark.parametrize("size", [0, 5, 8, 100, 4096, 4500, -64, -1, 1, 4096 * 3])
def test_other_sizes(mini: Llama, saved: Path, size: int) -> None:
    raw = saved.read_bytes()
    saved.write_bytes((raw + bytes(9))[: len(raw) + 1] if size == 1 else raw[:size])
    refused(mini, saved, ".")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", "pt", "no saved session"),
        ("version", "2", "version '2'; this one reads 1"),
        ("model_id", "0" * 64, "model_id is '0000.*that of the loaded model is"),
        ("kv_dtype", "f64", "kv_dtype is 'f64'"),
        ("rope", "0" * 64, "rope is '0000"),
        ("n_cached", "71", "n_cached is '71'; expected 0 to 70"),
        ("n_cached", "-1", "n_cached is '-1'"),
        ("n_cached", "070", "n_cached is '070'"),
        ("n_cached", "\u0667", "n_cached is"),
        ("n_cached", "9" * 5000, "n_cached is"),
        ("n_cached", "64", "tensors are not those"),
        ("more", "x", "version '1'"),
    ],
)
def test_metadata(mini: Llama, saved: Path, key: str, value: str, message: str) -> None:
    def change(header: dict[str, Any]) -> None:
        header["__metadata__"][key] = value

    refused(mini, edited(saved, change), message)


def test_tensors(mini: Llama, saved: Path) -> None:
    for change in (
        lambda h: h.pop("kv"),
        lambda h: h["token_ids"].update(shape=[280, 1]),
        lambda h: h["token_ids"].update(shape=[2**62, 4]),
        lambda h: h["kv"].update(dtype="I8"),
        lambda h: h.update(sha257=h.pop("sha256")),
    ):
        refused(mini, edited(saved, change), ".")


def test_header_that_claims_to_be_huge(mini: Llama, saved: Path) -> None:
    saved.write_bytes((2**40).to_bytes(8, "little") + saved.read_bytes()[8:])
    refused(mini, saved, "no saved session")


def with_true_hash(path: Path, at: int, data: bytes) -> None:
    """Forge: other data, and the hash that fits."""
    import hashlib

    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    raw[-64:-32] = hashlib.sha256(raw[:-64]).digest()
    path.write_bytes(raw)


@pytest.mark.parametrize("token", [-1, 4096, 2**31 - 1])
def test_ids_outside_the_vocabulary(mini: Llama, saved: Path, token: int) -> None:
    with_true_hash(saved, 4096, token.to_bytes(4, "little", signed=True))
    refused(mini, saved, "the vocabulary has 4096")


def test_forged_values_that_are_not_finite(mini: Llama, saved: Path) -> None:
    """They end in an error, not in nonsense; other texts do not see them."""
    n_bytes = mini.engine.block_bytes
    with_true_hash(saved, 4096 + 320, b"\xff" * n_bytes)
    with mini.session() as session:
        session.load(saved)
        with pytest.raises(NonFiniteError):
            session.append([5])
    assert np.isfinite(mini.logits(words(mini, 80))).all()


def test_text_beyond_the_context(mini_file: Path, mini: Llama, saved: Path) -> None:
    with llama2q.load(mini_file, kv_dtype=mini.engine.kv_dtype, n_ctx=64) as small:
        refused(small, saved, "70 tokens; the context holds 64")


def test_other_model(convert_mini: Callable[..., Path], mini: Llama, saved: Path) -> None:
    with llama2q.load(convert_mini(quant="int8"), kv_dtype=mini.engine.kv_dtype) as llm:
        refused(llm, saved, "its model_id is")


def test_other_version_is_computed_again(
    mini: Llama, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding = {**store.binding_of(mini.engine), "computed_by": "llama2q 0.0, cpu"}
    with mini.session() as session:
        session.append(words(mini, 70))
        with monkeypatch.context() as patch:
            patch.setattr(store, "binding_of", lambda engine: binding)
            session.save(saved)
    with mini.session() as session:
        session.load(saved)
        assert session.token_ids == tuple(words(mini, 70))
        assert session._text._sequence is None
        assert np.array_equal(session.append([9]), mini.logits([*words(mini, 70), 9])[-1])


def test_readable_as_safetensors(mini: Llama, saved: Path) -> None:
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    tensors = safetensors_numpy.load_file(saved)
    ids = tensors["token_ids"].view("<i4")[:, 0]
    assert ids.tolist() == words(mini, 70)
    assert tensors["kv"].shape == (2, mini.engine.block_bytes)


def test_header_is_canonical(saved: Path) -> None:
    raw = saved.read_bytes()
    header = parse_header(raw[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(raw[:8], "little")])
    assert raw.startswith(build_header(header.tensors, header.metadata))


def test_closed(mini: Llama, saved: Path) -> None:
    session = mini.session()
    session.close()
    for call in (session.save, session.load):
        with pytest.raises(ClosedError):
            call(saved)
