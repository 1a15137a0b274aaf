"""Cases of GGUF files: headers that claim too much, tensors elsewhere, other models, bad values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece

from converter import gguf_bytes as raw
from converter.gguf_bytes import array, number, raw_gguf, tensor, text, value
from converter.hf_files import read_meta
from hostile.bench import TOKENIZER, Bench, Table
from llama2q.converter.gguf_tensors import gguf_name
from llama2q.errors import (
    ChatTemplateError,
    Llama2qError,
    NonFiniteWeightError,
    ParamsError,
    ShardFormatError,
    TensorSetError,
    TokenizerError,
    TruncatedShardError,
    UnsupportedModelError,
)

CASES = Table()
HUGE = 2**63
BF16 = 30


class Model:
    """The sound model as GGUF's entries, to be changed before it is written."""

    def __init__(self, bench: Bench) -> None:
        meta, config = read_meta(bench.sound)
        self.path = bench.folder / "model.gguf"
        model = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
        self.tokens = [model.id_to_piece(token).encode() for token in range(config.vocab_size)]
        self.kinds = [
            2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
            for i in range(config.vocab_size)
        ]
        self.values: dict[str, tuple[int, bytes]] = {
            "general.architecture": (raw.STRING, text("llama")),
            "llama.block_count": (raw.U32, number(raw.U32, config.n_layers)),
            "llama.context_length": (raw.U32, number(raw.U32, config.max_seq_len)),
            "llama.embedding_length": (raw.U32, number(raw.U32, config.dim)),
            "llama.feed_forward_length": (raw.U32, number(raw.U32, config.hidden_dim)),
            "llama.attention.head_count": (raw.U32, number(raw.U32, config.n_heads)),
            "llama.attention.head_count_kv": (raw.U32, number(raw.U32, config.n_kv_heads)),
            "llama.attention.layer_norm_rms_epsilon": (raw.F32, number(raw.F32, 1e-5)),
            "tokenizer.ggml.model": (raw.STRING, text("llama")),
        }
        self.arrays = {gguf_name(name): weights for name, weights in meta.items()}

    def put(self, key: str, kind: int, payload: bytes) -> None:
        self.values[key] = kind, payload

    def write(self) -> Path:
        n_tokens = len(self.tokens)
        scores = np.arange(0, -n_tokens, -1, dtype="<f4").tobytes()
        tokenizer = {
            "tokens": array(raw.STRING, n_tokens, b"".join(map(text, self.tokens))),
            "scores": array(raw.F32, n_tokens, scores),
            "token_type": array(raw.I32, n_tokens, np.array(self.kinds, "<i4").tobytes()),
        }
        for name, payload in tokenizer.items():
            self.values.setdefault(f"tokenizer.ggml.{name}", (raw.ARRAY, payload))
        infos, data = [], b""
        for name, weights in self.arrays.items():
            infos.append(tensor(name, weights.shape[::-1], BF16, len(data)))
            data += weights.tobytes() + bytes(-weights.nbytes % 32)
        values = [value(key, kind, payload) for key, (kind, payload) in self.values.items()]
        return raw_gguf(self.path, values, infos, data=data)


def add(
    name: str, error: type[Llama2qError], sentence: str, change: Callable[[Model], object]
) -> None:
    """Add a case: the sound model, changed before it is written."""

    def make(bench: Bench) -> Path:
        model = Model(bench)
        change(model)
        return model.write()

    CASES.add(f"gguf-{name}", error, sentence, make)


def add_bytes(
    name: str, error: type[Llama2qError], sentence: str, change: Callable[[bytes], bytes]
) -> None:
    """Add a case: the sound model's file, changed."""

    def make(bench: Bench) -> Path:
        path = Model(bench).write()
        path.write_bytes(change(path.read_bytes()))
        return path

    CASES.add(f"gguf-{name}", error, sentence, make)


def add_entries(
    name: str, error: type[Llama2qError], sentence: str, values: list[bytes], tensors: list[bytes]
) -> None:
    """Add a case: a small file of these entries."""
    CASES.add(f"gguf-{name}", error, sentence,
              lambda bench: raw_gguf(bench.folder / "blob", values, tensors))  # fmt: skip


# --- headers ----------------------------------------------------------------------------------

for _percent in (1, 30, 60, 99):
    add_bytes(f"cut-at-{_percent}-percent", TruncatedShardError, "is truncated",
              lambda data, _percent=_percent: data[: len(data) * _percent // 100])  # type: ignore[misc]  # fmt: skip
add_bytes("version-1", ShardFormatError, "has GGUF version 1",
          lambda data: data[:4] + b"\1" + data[5:])  # fmt: skip
add_bytes("big-endian", ShardFormatError, "is a big-endian GGUF file",
          lambda data: data[:4] + b"\0\0\0\3" + data[8:])  # fmt: skip
add_bytes("many-tensors", ShardFormatError, "claims 18446744073709551615 tensors",
          lambda data: data[:8] + b"\xff" * 8 + data[16:])  # fmt: skip
add_bytes("many-keys", ShardFormatError, "claims 18446744073709551615 keys",
          lambda data: data[:16] + b"\xff" * 8 + data[24:])  # fmt: skip
add_bytes("web-page", ShardFormatError, "is a web page", lambda data: b"<!doctype html>")
add_entries("43-bytes", ShardFormatError, "claims 9223372036854775808 elements",
            [value("k", raw.ARRAY, array(raw.U8, HUGE))], [])  # fmt: skip
add_entries("strings-without-end", TruncatedShardError, "ends inside its header",
            [value("k", raw.ARRAY, array(raw.STRING, 1 << 20))], [])  # fmt: skip
_NESTED = value("k", raw.ARRAY, array(raw.ARRAY, 1, array(raw.ARRAY, 1 << 20)))
add_entries("nested-arrays", ShardFormatError, "is an array of arrays", [_NESTED], [])
add_entries("long-string", ShardFormatError, "claims 9223372036854775808 bytes",
            [value("k", raw.STRING, struct.pack("<Q", HUGE))], [])  # fmt: skip
add_entries("key-of-controls", ShardFormatError, "expected printable ASCII",
            [value("\x1b]0;x\x07", raw.U8, b"\0")], [])  # fmt: skip
add_entries("same-key", ShardFormatError, "has the key k twice",
            [value("k", raw.U8, b"\0")] * 2, [])  # fmt: skip
add_entries("overlap", ShardFormatError, "overlaps", [], [tensor("a"), tensor("b", offset=96)])
add_entries("offset-overflow", TruncatedShardError, "is truncated", [],
            [tensor("a", offset=2**64 - 64)])  # fmt: skip
add_entries("shape-overflow", TruncatedShardError, "is truncated", [],
            [tensor("a", (2**40, 2**24, 2**40))])  # fmt: skip
add_entries("no-model", UnsupportedModelError, "has the architecture None", [], [tensor("a"),
            tensor("token_embd.weight", (8,), offset=128)])  # fmt: skip


def _many_strings(bench: Bench) -> Path:
    """Thirty-two megabytes of short strings: what the header may have, and more."""
    many = array(raw.STRING, 1 << 20, text("ab") * (1 << 20))
    return raw_gguf(bench.folder / "x.gguf", [value(f"k{i}", raw.ARRAY, many) for i in range(4)])


CASES.add("gguf-strings-beyond-the-header", ShardFormatError, "goes beyond", _many_strings)


# --- models -----------------------------------------------------------------------------------


def _ints(key: str, number_: int) -> Callable[[Model], None]:
    return lambda model: model.put(key, raw.U32, number(raw.U32, number_))


def _scaling(kind: str, factor: float) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.put("llama.rope.scaling.type", raw.STRING, text(kind))
        model.put("llama.rope.scaling.factor", raw.F32, number(raw.F32, factor))

    return change


def _drop(name: str) -> Callable[[Model], object]:
    return lambda model: model.arrays.pop(name)


def _token(token: int, data: bytes, kind: int = 1) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        model.tokens[token], model.kinds[token] = data, kind

    return change


def _infinite(name: str) -> Callable[[Model], None]:
    def change(model: Model) -> None:
        weights = model.arrays[name].copy()
        weights.reshape(-1)[5] = 0x7F80
        model.arrays[name] = weights

    return change


add("layers-without-end", TensorSetError, "its keys say 2147483647 layers",
    _ints("llama.block_count", 2**31 - 1))  # fmt: skip
add("vocabulary-of-another-model", ParamsError, "vocab_size is 32000",
    _ints("llama.vocab_size", 32000))  # fmt: skip
for _name, _factor in (("nan", float("nan")), ("0", 0.0), ("negative", -4.0), ("half", 0.5)):
    add(f"positions-scaled-by-{_name}", ParamsError, "rope.scaling.factor is",
        _scaling("yarn", _factor))  # fmt: skip
add("positions-scaled-unknown", UnsupportedModelError, "rope scaling of type 'longrope'",
    _scaling("longrope", 4.0))  # fmt: skip
add("experts", UnsupportedModelError, "does not compute experts", _ints("llama.expert_count", 8))
add("tensor-missing", TensorSetError, "missing 1 (blk.0.attn_q.weight)",
    _drop("blk.0.attn_q.weight"))  # fmt: skip
add("no-embeddings", TensorSetError, "has no embedding table", _drop("token_embd.weight"))
add("tokenizer-of-llama-3", TokenizerError, "of the kind 'gpt2'",
    lambda model: model.put("tokenizer.ggml.model", raw.STRING, text("gpt2")))  # fmt: skip
add("token-twice", TokenizerError, "is there twice", _token(300, b"<s>"))
add("token-empty", TokenizerError, "token 300 is ''", _token(300, b""))
add("token-of-noise", TokenizerError, "token 300 is", _token(300, b"\xff\xfe"))
add("token-of-unknown-type", TokenizerError, "has the type 99", _token(300, b"x99", 99))
add("token-of-a-byte-too-many", TokenizerError, "the tokens of single bytes are 257",
    _token(300, b"<0x100>", 6))  # fmt: skip
add("fewer-tokens", TokenizerError, "They are not of one model",
    lambda model: (model.tokens.__delitem__(slice(3000, None)),
                   model.kinds.__delitem__(slice(3000, None))))  # fmt: skip
add("infinite-weight", NonFiniteWeightError, "is inf", _infinite("blk.1.ffn_up.weight"))
add("flag-of-another-type", ParamsError, "add_bos_token is 3; expected true or false",
    _ints("tokenizer.ggml.add_bos_token", 3))  # fmt: skip
add("template-without-end", ChatTemplateError, "the chat template has over",
    lambda m: m.put("tokenizer.chat_template", raw.STRING, text("x" * (1 << 20))))  # fmt: skip
