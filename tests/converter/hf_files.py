"""Builders of folders in Hugging Face's form, good and bad, for the tests."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from llama2q.config import ModelConfig
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.hf_tensors import hf_name
from llama2q.converter.pth_writer import write_pth

Tensors = dict[str, NDArray[Any]]
FORMS = ("safetensors", "safetensors-sharded", "bin", "bin-sharded")
INDEX = "model.safetensors.index.json"
N_SHARDS = 3
_NAMES = {"f4": "F32", "f2": "F16", "u2": "BF16", "i4": "I32", "u1": "U8", "f8": "F64"}
_BIN_DTYPES = {"f4": "f32", "f2": "f16", "u2": "bf16"}


def permute(weights: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Bring rows of q or k from Meta's order to Hugging Face's, as transformers' script does."""
    rows, cols = weights.shape
    pairs = weights.reshape(n_heads, rows // n_heads // 2, 2, cols)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3).reshape(rows, cols))


def hf_tensors(meta: Mapping[str, NDArray[Any]], config: ModelConfig) -> Tensors:
    """Rename Meta's tensors and permute q and k."""
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}
    tensors = {}
    for name, array in meta.items():
        n_heads = heads.get(name.split(".")[-2])
        tensors[hf_name(name)] = array if n_heads is None else permute(array, n_heads)
    return tensors


def hf_config(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, Any]:
    """Return config.json as transformers 4 writes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "initializer_range": 0.02,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.max_seq_len,
        "model_type": "llama",
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformers_version": "4.40.0",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def raw_safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    """Write a file with this header: JSON of an object, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def header_of(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return the entries of these tensors, one behind the other; uint16 counts as BF16."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        dtype = _NAMES[array.dtype.str[1:]]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, end]}
    return header


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[Any]], align: int = 8) -> Path:
    """Write a sound file as the safetensors package does: metadata, padded with spaces."""
    header = {"__metadata__": {"format": "pt"}, **header_of(tensors)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % align)
    return raw_safetensors(path, text, b"".join(array.tobytes() for array in tensors.values()))


def write_weights(folder: Path, tensors: Tensors, form: str = "safetensors") -> None:
    """Write the weights in one of `FORMS`."""
    kind, _, sharded = form.partition("-")
    stem, ending = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    if not sharded:
        write_file(folder / (stem + ending), tensors)
        return
    names = list(tensors)
    placement = {}
    for number in range(N_SHARDS):
        part = names[number::N_SHARDS]
        name = f"{stem}-{number + 1:05d}-of-{N_SHARDS:05d}{ending}"
        write_file(folder / name, {tensor: tensors[tensor] for tensor in part})
        placement |= dict.fromkeys(part, name)
    size = sum(array.nbytes for array in tensors.values())
    write_json(folder / f"{stem}{ending}.index.json",
               {"metadata": {"total_size": size}, "weight_map": placement})  # fmt: skip


def write_file(path: Path, tensors: Tensors) -> None:
    if path.suffix == ".safetensors":
        write_safetensors(path, tensors)
    else:
        (kind,) = {array.dtype.str[1:] for array in tensors.values()}
        write_pth(path, tensors, _BIN_DTYPES[kind])


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; the text "absent" removes one."""
    values = json.loads(path.read_text()) | changes
    write_json(path, {key: value for key, value in values.items() if value != "absent"})


def read_meta(folder: Path) -> tuple[Tensors, ModelConfig]:
    """Return copies of the tensors of a checkpoint in Meta's form."""
    with MetaCheckpoint.open(folder) as checkpoint:
        tensors = {name: checkpoint.read(name).copy() for name in checkpoint.shapes}
        return tensors, checkpoint.config


def hf_folder(
    folder: Path,
    meta: Path,
    form: str = "safetensors",
    *,
    change: Callable[[Tensors], object] | None = None,
    **config: object,
) -> Path:
    """Write a checkpoint of Meta's form in Hugging Face's, with changes of tensors and config."""
    meta_tensors, shape = read_meta(meta)
    tensors = hf_tensors(meta_tensors, shape)
    if change is not None:
        change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, tensors, form)
    write_json(folder / "config.json", hf_config(shape))
    change_json(folder / "config.json", **config)
    shutil.copyfile(meta / "tokenizer.model", folder / "tokenizer.model")
    return folder


def as_hub_cache(folder: Path, cache: Path, repository: str = "org/Small-7b") -> Path:
    """Lay a folder out as Hugging Face's cache does; return the snapshot."""
    root = cache / ("models--" + repository.replace("/", "--"))
    commit = hashlib.sha1(b"commit").hexdigest()
    snapshot = root / "snapshots" / commit
    for place in (snapshot, root / "blobs", root / "refs"):
        place.mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        large = file.suffix in (".safetensors", ".bin", ".model")
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        name = hashlib.sha256(data).hexdigest() if large else git
        (root / "blobs" / name).write_bytes(data)
        try:
            (snapshot / file.name).symlink_to(Path("../../blobs") / name)
        except OSError:
            pytest.skip("no symbolic links here")
    return snapshot
