"""Cases of whole steps of the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.container import Case, Value
from golden.kernels import KV_DTYPES, SCALAR
from golden.stored import Stored
from llama2q import _core
from llama2q.format.layout import INV_FREQ
from llama2q.format.reader import L2qFile
from llama2q.format.recipe import EMBEDDINGS, LAYER_MATRICES, OUTPUT
from llama2q.quant import GRIDS

N_BLOCKS = 6
# Sequence -> its blocks.
TABLES = np.array([[4, 1], [0, 5]], np.int32)


def cases(files: dict[str, Path]) -> Iterator[Case]:
    """Yield a case per file of the demo model and KV type.

    Parameters
    ----------
    files : dict of str to Path
        A converted demo model per name of its quantization.
    """
    for (quant, path), kv_dtype in zip(files.items(), ("f16", "int8", "f32"), strict=False):
        yield _case(f"mini {quant}, {kv_dtype} cache", path, kv_dtype)


def _plan() -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield the positions, sequences and output rows of each step."""
    # A prompt in one step, then single tokens; then another sequence beside the first.
    yield list(range(19)), [0] * 19, [0, 17, 18]
    yield [19], [0], [0]
    yield [20], [0], [0]
    yield [21, 0, 1, 2], [0, 1, 1, 1], [0, 3]


def _case(name: str, path: Path, kv_dtype: str) -> Case:
    with L2qFile(path) as file:
        config = file.config.to_dict()
        fields: dict[str, Value] = {
            key: int(config[key])
            for key in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")
        }
        inv_freq, norm = file.array(INV_FREQ).copy(), file.array("norm.weight").copy()
        fields |= {"norm_eps": float(config["norm_eps"]), "inv_freq": inv_freq, "norm": norm}
        layers = []
        for i in range(file.config.n_layers):
            layer: dict[str, Any] = {}
            for key in ("attention_norm", "ffn_norm"):
                layer[key] = file.array(f"layers.{i}.{key}.weight").copy()
                fields[f"{i}.{key}"] = layer[key]
            for matrix in LAYER_MATRICES:
                stored, short = _stored(file, f"layers.{i}.{matrix}"), matrix.split(".")[1]
                layer[short] = stored.matrix()
                fields |= stored.fields(f"{i}.{short}")
            layers.append(layer)
        table, output = _stored(file, EMBEDDINGS), _stored(file, OUTPUT)
        fields |= {**table.fields("tok_embeddings"), **output.fields("output")}
        model = _core.Model(
            config=config, tok_embeddings=table.embedding(), layers=layers, norm=norm,
            output=output.matrix(), inv_freq=inv_freq, kv_dtype=kv_dtype,  # type: ignore[arg-type]
            n_blocks=N_BLOCKS, n_threads=1, isa=SCALAR,
        )  # fmt: skip
        fields |= {"kv_type": KV_DTYPES.index(kv_dtype), "n_blocks": N_BLOCKS}
        return Case(name, "steps", {**fields, **_steps(model, file.config.vocab_size)})


def _steps(model: _core.Model, vocab_size: int) -> dict[str, Value]:
    rng = np.random.default_rng(11)
    fields: dict[str, Value] = {"threads": np.array([1, 3], np.int64)}
    plan = list(_plan())
    for i, (positions, sequences, rows) in enumerate(plan):
        arrays: dict[str, NDArray[Any]] = {
            "ids": rng.integers(0, vocab_size, len(positions)).astype(np.int32),
            "positions": np.array(positions, np.int32),
            "sequences": np.array(sequences, np.int32),
            "tables": TABLES[: max(sequences) + 1],
            "rows": np.array(rows, np.int32),
        }
        logits = model.step(
            arrays["ids"], arrays["positions"], arrays["sequences"], arrays["tables"],
            arrays["rows"],
        )  # fmt: skip
        fields |= {f"step {i} {key}": array for key, array in arrays.items()}
        fields |= {f"step {i} n_sequences": max(sequences) + 1, f"step {i} logits": logits}
    return {**fields, "n_steps": len(plan)}


def _stored(file: L2qFile, name: str) -> Stored:
    """Return a matrix of a file; w1 and w3 together are one of twice the bands."""
    spec = file.matrix(name)
    arrays = [file.array(tensor.name).copy() for tensor in spec.tensors()]
    rows = spec.rows if len(spec.sources) == 1 else arrays[0].shape[0] * _core.BAND_ROWS
    if len(arrays) == 1:
        return Stored(spec.stored.type, rows, spec.cols, 0, arrays[0])
    codes, scales = arrays
    stored, grid = spec.stored, None
    if stored.grid is not None:
        grid = np.array(GRIDS[stored.grid], np.int8)
    return Stored(stored.type, rows, spec.cols, stored.group_size or 0, codes, scales, grid)
