"""Writes the seeds of the two readers' corpora: `python tests/fuzz/make_corpus.py` in the root."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tools")]

import numpy as np  # noqa: E402

from converter import pth_files as pickles  # noqa: E402
from fuzz import fuzz_checkpoint, fuzz_l2q  # noqa: E402
from l2q_files import split_file, write_small  # noqa: E402
from llama2q.config import ModelConfig  # noqa: E402
from llama2q.converter.pth_writer import write_pth  # noqa: E402
from llama2q.format.header import canonical_json  # noqa: E402

TINY = ModelConfig(
    dim=4, hidden_dim=6, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=3, norm_eps=1e-5
)
"""Whole files of this model are small enough to be seeds."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _checkpoint_seeds(Path(folder))
        _l2q_seeds(Path(folder))


def _save(corpus: str, name: str, kind: int, body: bytes) -> None:
    (HERE / "corpus" / corpus / name).write_bytes(bytes([kind]) + body)


def _checkpoint_seeds(folder: Path) -> None:
    path = folder / "consolidated.00.pth"
    tensors = {"norm.weight": np.ones(4, np.uint16), "a.b": np.ones((2, 3), np.uint16)}
    write_pth(path, tensors, "bf16")
    _save("checkpoint", "shard-bf16", fuzz_checkpoint.SHARD, path.read_bytes())
    code = pickles.dict_pickle(
        a=pickles.tensor(), b=pickles.tensor(offset=1, shape=(2,), strides=(1,))
    )
    pickles.archive(path, code)
    _save("checkpoint", "shard-zipfile", fuzz_checkpoint.SHARD, path.read_bytes())
    _save("checkpoint", "pickle-two-tensors", fuzz_checkpoint.PICKLE, code)
    half = pickles.storage(16, "1", "HalfStorage")
    _save("checkpoint", "pickle-half", fuzz_checkpoint.PICKLE,
          pickles.dict_pickle(a=pickles.tensor(half, shape=(4, 4), strides=(4, 1))))  # fmt: skip
    params = {"dim": 16, "multiple_of": 8, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2,
              "norm_eps": 1e-05, "vocab_size": -1}  # fmt: skip
    _save("checkpoint", "params", fuzz_checkpoint.PARAMS, json.dumps(params).encode())
    every = {**params, "ffn_dim_multiplier": 1.3, "max_seq_len": 2048, "rope_theta": 10000.0,
             "max_batch_size": 1, "use_scaled_rope": False}  # fmt: skip
    _save("checkpoint", "params-every-key", fuzz_checkpoint.PARAMS, json.dumps(every).encode())


def _l2q_seeds(folder: Path) -> None:
    path = folder / "model.l2q"
    for quant in ("int4", "int8", "none"):
        write_small(path, quant, config=TINY, group_size=32)
        content = path.read_bytes()
        header, _ = split_file(content)
        _save("l2q", f"header-{quant}", fuzz_l2q.HEADER, canonical_json(header).encode("ascii"))
        _save("l2q", f"whole-{quant}", fuzz_l2q.WHOLE, content)
        _save("l2q", f"rehashed-{quant}", fuzz_l2q.REHASHED, content)


if __name__ == "__main__":
    main()
