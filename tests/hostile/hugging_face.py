"""Cases in Hugging Face's form: safetensors headers, indexes, config.json, tokenizers, pickles."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converter.hf_files import (
    INDEX,
    Tensors,
    change_json,
    header_of,
    hf_folder,
    hf_tensors,
    raw_safetensors,
    read_meta,
    write_json,
)
from hostile.bench import Bench, CannotMakeError, Table
from hostile.pickles import LIVE
from llama2q.errors import (
    ChatTemplateError,
    CheckpointNotFoundError,
    ChecksumError,
    Llama2qError,
    MissingShardError,
    NonFiniteWeightError,
    ParamsError,
    ShardFormatError,
    ShardIndexError,
    TensorSetError,
    TokenizerError,
    TruncatedShardError,
    UnreadableFileError,
    UnsafePickleError,
    UnsupportedModelError,
)

CASES = Table()
WEIGHTS = "model.safetensors"
FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
NORM = "model.norm.weight"


def add(
    name: str,
    error: type[Llama2qError],
    sentence: str,
    change: Callable[[Path], object],
    form: str = "safetensors",
    **config: object,
) -> None:
    """Add a case: the sound model in Hugging Face's form, then changed."""

    def make(bench: Bench) -> Path:
        folder = hf_folder(bench.folder / "model", bench.sound, form, **config)
        change(folder)
        return folder

    CASES.add(f"hf-{name}", error, sentence, make)


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the header of the weights' file; the data stays."""

    def rewrite(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(content[:8], "little")
        values = json.loads(content[8 : 8 + length])
        change(values)
        raw_safetensors(folder / WEIGHTS, values, content[8 + length :])

    return rewrite


def nothing(folder: Path) -> None:
    """Leave the folder as it is; the config has been changed."""


# --- safetensors ------------------------------------------------------------------------------

for _percent in (1, 40, 99):
    add(f"cut-{_percent}", TruncatedShardError, f"{WEIGHTS} is truncated",
        lambda f, percent=_percent: os.truncate(
            f / WEIGHTS, (f / WEIGHTS).stat().st_size * percent // 100))  # fmt: skip
add("cut-shard", TruncatedShardError, f"{SECOND} is truncated",
    lambda f: os.truncate(f / SECOND, 2000), "safetensors-sharded")  # fmt: skip
add("empty-shard", TruncatedShardError, f"{SECOND} is empty",
    lambda f: os.truncate(f / SECOND, 0), "safetensors-sharded")  # fmt: skip
add("trailing-bytes", ShardFormatError, "4 bytes follow its last tensor",
    lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"evil"))  # fmt: skip
add("overlap", ShardFormatError, "overlaps", header(
    lambda h: h[NORM].update(data_offsets=[0, 32])))  # fmt: skip
add("same-place-twice", ShardFormatError, "overlaps", header(
    lambda h: h.update(copy=dict(h[NORM]))))  # fmt: skip
add("hole", ShardFormatError, "a hole of 32 bytes", header(lambda h: h.pop(NORM)))
add("outside", TruncatedShardError, "is truncated (", header(
    lambda h: h.update(far={"dtype": "U8", "shape": [9 << 40],
                            "data_offsets": [h["lm_head.weight"]["data_offsets"][1],
                                             h["lm_head.weight"]["data_offsets"][1] + (9 << 40)]})
))  # fmt: skip
add("dtype-lie", ShardFormatError, "in F32 needs 64 bytes", header(
    lambda h: h[NORM].update(dtype="F32")))  # fmt: skip
add("dtype-unknown", ShardFormatError, "unknown dtype 'F4'", header(
    lambda h: h[NORM].update(dtype="F4")))  # fmt: skip
add("dtype-integers", TensorSetError, "has the dtype i16", header(
    lambda h: h[NORM].update(dtype="I16")))  # fmt: skip
add("dtype-mixed", TensorSetError, "the matrices have different dtypes", header(
    lambda h: h["lm_head.weight"].update(dtype="F16")))  # fmt: skip
add("shape-product-wraps", ShardFormatError, "expected sizes", header(
    lambda h: h[NORM].update(shape=[2**63, 2**63])))  # fmt: skip
add("shape-transposed", TensorSetError, "config.json makes it", header(
    lambda h: h["lm_head.weight"].update(shape=[16, 4096])))  # fmt: skip
add("name-escapes", TensorSetError, "printable ASCII", header(
    lambda h: h.update({"\x1b[2J": h.pop(NORM)})))  # fmt: skip
add("name-long", TensorSetError, "printable ASCII", header(
    lambda h: h.update({"x" * 100_000: h.pop(NORM)})))  # fmt: skip
add("header-length-huge", ShardFormatError, "its header claims",
    lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 8 + b'{"a"'))  # fmt: skip
add("header-bomb", ShardFormatError, "is not valid JSON",
    lambda f: raw_safetensors(f / WEIGHTS, b'{"a":' * 200_000))  # fmt: skip
add("header-number-bomb", ShardFormatError, "is not valid JSON",
    lambda f: raw_safetensors(f / WEIGHTS, b'{"a":' + b"9" * 1_000_000 + b"}"))  # fmt: skip
add("header-key-twice", ShardFormatError, "a key appears twice",
    lambda f: raw_safetensors(f / WEIGHTS, b'{"a":1,"a":2}'))  # fmt: skip
add("noise", ShardFormatError, "expected a safetensors file",
    lambda f: (f / WEIGHTS).write_bytes(bytes(range(1, 256)) * 9))  # fmt: skip
add("web-page", ShardFormatError, "is a web page",
    lambda f: (f / WEIGHTS).write_bytes(b"<!doctype html>gated"))  # fmt: skip
add(
    "lfs-pointer",
    ShardFormatError,
    "is a Git LFS pointer",
    lambda f: (f / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
)
add("pickle-named-safetensors", ShardFormatError, "is a zip archive",
    lambda f: shutil.move(f / "pytorch_model.bin", f / WEIGHTS), "bin")  # fmt: skip


def with_value(name: str, bits: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / WEIGHTS).read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        values = json.loads(data[8:start])
        at = start + values[name]["data_offsets"][0] + 6
        data[at : at + 2] = bits.to_bytes(2, "little")
        (folder / WEIGHTS).write_bytes(data)

    return change


add("nan", NonFiniteWeightError, "norm.weight: element 3 is nan", with_value(NORM, 0x7FC0))
add("infinite-q", NonFiniteWeightError, "layers.1.attention.wq.weight",
    with_value("model.layers.1.self_attn.q_proj.weight", 0x7F80))  # fmt: skip

# --- the index --------------------------------------------------------------------------------


def indexed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        values = json.loads((folder / INDEX).read_text())
        change(values)
        write_json(folder / INDEX, values)

    return rewrite


for _label, _path in (
    ("parent", "../../x.safetensors"),
    ("absolute", "/etc/passwd.safetensors"),
    ("below", "below/x.safetensors"),
    ("backslash", "..\\x.safetensors"),
    ("drive", "C:x.safetensors"),
    ("nul", "x\0.safetensors"),
    ("hidden", ".safetensors"),
    ("ending", "x.bin"),
    ("number", 7),
    ("long", "x" * 5000 + ".safetensors"),
):
    add(f"index-{_label}", ShardIndexError, "expected the plain name of a .safetensors file",
        indexed(lambda v, path=_path: v["weight_map"].update({NORM: path})),
        "safetensors-sharded")  # fmt: skip
add("index-missing-tensor", ShardIndexError, f"places 'evil' in {FIRST}, which does not hold it",
    indexed(lambda v: v["weight_map"].update(evil=FIRST)), "safetensors-sharded")  # fmt: skip
add("index-unlisted-tensor", ShardIndexError, f"does not name {NORM}",
    indexed(lambda v: v["weight_map"].pop(NORM)), "safetensors-sharded")  # fmt: skip
add("index-wrong-file", ShardIndexError, "; it is in ",
    indexed(lambda v: v["weight_map"].update({
        NORM: FIRST if v["weight_map"][NORM] != FIRST else SECOND})),
    "safetensors-sharded")  # fmt: skip
add("index-empty", ShardIndexError, "weight_map is {}",
    indexed(lambda v: v.update(weight_map={})), "safetensors-sharded")  # fmt: skip
add("index-list", ShardIndexError, "weight_map is [1]",
    indexed(lambda v: v.update(weight_map=[1])), "safetensors-sharded")  # fmt: skip
add("index-many-files", ShardIndexError, "names over 1000 files",
    indexed(lambda v: v["weight_map"].update(
        {f"x{i}": f"x{i}.safetensors" for i in range(1500)})), "safetensors-sharded")  # fmt: skip
add("index-no-json", ShardIndexError, "is not valid JSON",
    lambda f: (f / INDEX).write_text("{" * 9), "safetensors-sharded")  # fmt: skip
add("index-absent", ShardIndexError, f"{INDEX} is missing beside {FIRST}",
    lambda f: (f / INDEX).unlink(), "safetensors-sharded")  # fmt: skip
add("shard-missing", MissingShardError,
    f"{SECOND} is missing: {INDEX} names 3 files; found {FIRST}",
    lambda f: (f / SECOND).unlink(), "safetensors-sharded")  # fmt: skip
add("shard-is-a-folder", UnreadableFileError, f"{SECOND} is a folder",
    lambda f: [(f / SECOND).unlink(), (f / SECOND).mkdir()], "safetensors-sharded")  # fmt: skip


def doubled(folder: Path) -> None:
    """Give every file all tensors."""
    for name in (FIRST, SECOND, "model-00003-of-00003.safetensors"):
        shutil.copyfile(folder / WEIGHTS, folder / name)
    (folder / WEIGHTS).unlink()
    content = (folder / FIRST).read_bytes()
    names = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names.pop("__metadata__")
    write_json(folder / INDEX, {"weight_map": {
        name: (FIRST, SECOND, "model-00003-of-00003.safetensors")[i % 3]
        for i, name in enumerate(names)}})  # fmt: skip


add("tensors-twice", TensorSetError, "expected each tensor once", doubled)

# --- links ------------------------------------------------------------------------------------


def linked(target: str, name: str = WEIGHTS) -> Callable[[Path], None]:
    def link(folder: Path) -> None:
        (folder / name).unlink()
        try:
            (folder / name).symlink_to(target)
        except OSError as error:
            raise CannotMakeError("no symbolic links here") from error

    return link


add("link-to-nothing", UnreadableFileError, f"{WEIGHTS} is a link to nothing",
    linked("../../blobs/" + "0" * 64))  # fmt: skip
add("link-to-itself", UnreadableFileError, f"{WEIGHTS} ", linked(WEIGHTS))
add("link-to-a-folder", UnreadableFileError, f"{WEIGHTS} is a folder", linked("."))
add("config-link-to-nothing", UnreadableFileError, "config.json is no ordinary file",
    linked("nowhere", "config.json"))  # fmt: skip


def wrong_blob(folder: Path) -> None:
    """Link to a blob that is named by another hash."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    (folder / WEIGHTS).rename(blobs / ("0" * 64))
    try:
        (folder / WEIGHTS).symlink_to(Path("../blobs") / ("0" * 64))
    except OSError as error:
        raise CannotMakeError("no symbolic links here") from error


add("blob-of-another-hash", ChecksumError, "its blob in the cache is named 0000",
    wrong_blob)  # fmt: skip

# --- config.json ------------------------------------------------------------------------------

add("config-absent", ParamsError, "config.json is missing", lambda f: (f / "config.json").unlink())
add("config-noise", ParamsError, "is not valid JSON",
    lambda f: (f / "config.json").write_bytes(bytes(range(256))))  # fmt: skip
add("config-bomb", ParamsError, "is not valid JSON",
    lambda f: (f / "config.json").write_bytes(b"[" * 500_000))  # fmt: skip
add("config-huge", ParamsError, "has over",
    lambda f: (f / "config.json").write_bytes(b" " * 3_000_000))  # fmt: skip
add("config-layers-huge", TensorSetError, "the weights are 21 tensors only", nothing,
    num_hidden_layers=2**31 - 1)  # fmt: skip
add("config-layers-few", TensorSetError, "unexpected 9", nothing, num_hidden_layers=1)
add("config-vocab-huge", ParamsError, "says vocab_size 2147483647", nothing,
    vocab_size=2**31 - 1)  # fmt: skip
add("config-hidden-other", TensorSetError, "config.json makes it", nothing, intermediate_size=56)
add("config-heads-other", ParamsError, "describes no Llama model", nothing, num_attention_heads=7)
add("config-escapes", UnsupportedModelError, "model_type '\\x1b[2J", nothing,
    model_type="\x1b[2Jllama")  # fmt: skip
for _label, _values, _sentence in (
    ("mistral", {"model_type": "mistral"}, "model_type 'mistral'"),
    ("qwen", {"model_type": "qwen2"}, "model_type 'qwen2'"),
    ("llama-3", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "of type 'llama3'"),
    ("long-rope", {"rope_parameters": {"rope_type": "longrope", "factor": 4}}, "type 'longrope'"),
    ("gptq", {"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
    ("biases", {"attention_bias": True}, "biases in attention"),
    ("own-code", {"auto_map": {"AutoModel": "evil.Model"}}, "which is never run"),
):
    add(f"config-{_label}", UnsupportedModelError, _sentence, nothing, **_values)

# --- tokenizers, templates, adapters ----------------------------------------------------------

add("tokenizer-json-alone", TokenizerError, "has tokenizer.json but no tokenizer.model",
    lambda f: (f / "tokenizer.model").rename(f / "tokenizer.json"))  # fmt: skip
add("tokenizer-absent", TokenizerError, "tokenizer.model is missing",
    lambda f: (f / "tokenizer.model").unlink())  # fmt: skip
add("tokenizer-noise", TokenizerError, "is not a SentencePiece model",
    lambda f: (f / "tokenizer.model").write_bytes(b"\xff" * 999))  # fmt: skip
add("added-tokens-rename", TokenizerError, "has the id 5, which is",
    lambda f: write_json(f / "added_tokens.json", {"\x1b[2J": 5}))  # fmt: skip
add("added-tokens-noise", TokenizerError, "added_tokens.json is not valid JSON",
    lambda f: (f / "added_tokens.json").write_bytes(b"\xff"))  # fmt: skip
add("added-tokens-list", TokenizerError, "added_tokens_decoder is not an object",
    lambda f: write_json(f / "tokenizer_config.json", {"added_tokens_decoder": [1]}))  # fmt: skip
add("template-unknown", ChatTemplateError, "looks like none of the known ones",
    lambda f: (f / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}"))  # fmt: skip
add("template-huge", ChatTemplateError, "the chat template has over",
    lambda f: (f / "chat_template.jinja").write_text("x" * 2_000_000))  # fmt: skip
add("adapter", CheckpointNotFoundError, "holds a LoRA adapter",
    lambda f: [(f / "config.json").rename(f / "adapter_config.json")])  # fmt: skip
add("no-weights", CheckpointNotFoundError, "has a config.json but no weights",
    lambda f: (f / WEIGHTS).unlink())  # fmt: skip

# --- pickles ----------------------------------------------------------------------------------


def bin_with_pickle(data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        import zipfile

        path = folder / "pytorch_model.bin"
        with zipfile.ZipFile(path) as file:
            entries = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w") as file:
            for name, content in entries.items():
                file.writestr(name, data if name.endswith("data.pkl") else content)

    return change


_MESSAGE = "its pickle asks for"
_live = next(iter(LIVE.values()))
add("bin-live-pickle", UnsafePickleError, _MESSAGE, bin_with_pickle(pickle.dumps(_live)), "bin")
add("bin-import", UnsafePickleError, _MESSAGE,
    bin_with_pickle(b"\x80\x02chostile.canary\nsing\n)R."), "bin")  # fmt: skip
add("bin-cut", TruncatedShardError, "pytorch_model.bin is truncated",
    lambda f: os.truncate(f / "pytorch_model.bin", 100_000), "bin")  # fmt: skip
add("bin-legacy", ShardFormatError, "legacy form of torch.save",
    lambda f: (f / "pytorch_model.bin").write_bytes(
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(99)), "bin")  # fmt: skip
add("bin-named-safetensors", ShardFormatError, "expected a zip archive",
    lambda f: shutil.move(f / WEIGHTS, f / "pytorch_model.bin"))  # fmt: skip


def tied_apart(bench: Bench) -> Path:
    """Say that the output is tied, but store another."""
    meta, config = read_meta(bench.sound)
    tensors: Tensors = hf_tensors(meta, config)
    folder = hf_folder(bench.folder / "model", bench.sound, tie_word_embeddings=True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][-1, -1] ^= 1
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    raw_safetensors(folder / WEIGHTS, header_of(tensors), data)
    change_json(folder / "config.json", tie_word_embeddings=True)
    return folder


CASES.add("hf-tied-apart", TensorSetError, "lm_head.weight differs from model.embed", tied_apart)
