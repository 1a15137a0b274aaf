"""Cases whose tensors lie: places, sizes, sets, shapes, numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.pth_files import SMALL, small_checkpoint, small_tensors, storage, tensor, text
from hostile.bench import ROOT, TOKENIZER, Bench, Table
from llama2q.converter.meta_tensors import tensor_shapes
from llama2q.errors import (
    MissingShardError,
    NonFiniteWeightError,
    QuantizationError,
    ShardFormatError,
    TensorSetError,
    UnsafePickleError,
)

CASES = Table()
Tensors = dict[str, NDArray[Any]]
WQ, W2, NORM = "layers.1.attention.wq.weight", "layers.0.feed_forward.w2.weight", "norm.weight"


def one_tensor(code: bytes) -> Callable[[Bench], Path]:
    """Give norm.weight another description, last in the pickle so that it wins."""

    def make(bench: Bench) -> Path:
        sound = bench.pickle()
        name = text("extra.weight")
        assert sound.endswith(b"u.")
        return bench.with_pickle(sound[:-2] + name + code + b"u.")

    return make


# --- places: what a pickle may say of a storage of 16 * 4096 bf16 values ----------------------

BF16 = "BFloat16Storage"
WHOLE = storage(numel=65536, key="0", kind=BF16)
for _name, _code, _sentence in (
    ("offset-negative", tensor(WHOLE, offset=-1), "offset, size or stride is -1"),
    ("size-negative", tensor(WHOLE, shape=(-2, -3)), "offset, size or stride is -2"),
    ("stride-negative", tensor(WHOLE, strides=(-3, -1)), "offset, size or stride is -3"),
    ("size-overflow", tensor(WHOLE, shape=(2**62, 4)), "offset, size or stride is 461168601842"),
    ("stride-overflow", tensor(WHOLE, strides=(2**62, 1)), "offset, size or stride is"),
    ("offset-overflow", tensor(WHOLE, offset=2**62), "offset, size or stride is"),
    ("nine-dimensions", tensor(WHOLE, shape=(1,) * 9, strides=(1,) * 9), "9 dimensions"),
    ("missing-stride", tensor(WHOLE, strides=(1,)), "2 dimensions and 1 strides"),
    ("numel-negative", tensor(storage(-1, "0", BF16)), "a storage of -1 elements"),
    ("numel-overflow", tensor(storage(2**62, "0", BF16)), "a storage of 4611686018427387904"),
    ("two-types", tensor(storage(32768, "0", "FloatStorage")), "storage 0 in two types or sizes"),
):  # fmt: skip
    CASES.add(f"tensor-{_name}", UnsafePickleError, _sentence, one_tensor(_code))
for _name, _code, _sentence in (
    ("past-the-storage", tensor(WHOLE, offset=65532), "runs past its storage of 65536 elements"),
    ("product-overflow", tensor(WHOLE, shape=(2**40, 2**40)), "runs past its storage"),
    ("transposed", tensor(WHOLE, strides=(1, 2)), "expected a contiguous tensor"),
    ("expanded", tensor(WHOLE, shape=(1000, 3), strides=(0, 1)), "expected a contiguous tensor"),
    ("spread", tensor(WHOLE, strides=(6, 2)), "expected a contiguous tensor"),
    ("empty", tensor(WHOLE, shape=(0, 3)), "is empty"),
    ("numel-too-large", tensor(storage(70000, "99", BF16)), "lacks the storage"),
):
    CASES.add(f"tensor-{_name}", ShardFormatError, _sentence, one_tensor(_code))


for _name, _code in (
    ("aliased", tensor(WHOLE, shape=(4096, 16), strides=(16, 1))),
    ("aliased-part", tensor(WHOLE, offset=7)),
    ("aliased-end", tensor(WHOLE, offset=65530)),
):
    CASES.add(
        f"tensor-{_name}", TensorSetError, "extra.weight and tok_embeddings.weight share elements",
        one_tensor(_code),
    )  # fmt: skip


def tied(bench: Bench) -> Path:
    """Let every matrix of the layers be a view of the embedding table: small file, big model."""
    tensors: Tensors = dict(small_tensors())
    folder = small_checkpoint(bench.folder / "model", TOKENIZER, tensors=tensors)
    code = b"".join(
        text(name) + tensor(WHOLE, 0, array.shape, (array.shape[1], 1))
        for name, array in tensors.items()
        if array.ndim == 2
    )
    norms = b"".join(
        text(name) + tensor(WHOLE, 64 * i, array.shape, (1,))
        for i, (name, array) in enumerate(tensors.items())
        if array.ndim == 1
    )
    entries = {**bench.entries(), f"{ROOT}/data.pkl": b"\x80\x02}(" + code + norms + b"u."}
    shutil.rmtree(folder)
    return bench.with_entries(entries)


CASES.add("tensor-aliased-all", TensorSetError, "share elements of one storage", tied)


def wrong_storage(change: Callable[[bytes], bytes]) -> Callable[[Bench], Path]:
    def make(bench: Bench) -> Path:
        entries = bench.entries()
        entries[f"{ROOT}/data/0"] = change(entries[f"{ROOT}/data/0"])
        return bench.with_entries(entries)

    return make


for _name, _change in (
    ("short", lambda data: data[:-2]),
    ("long", lambda data: data + b"xx"),
    ("empty", lambda data: b""),
):
    CASES.add(
        f"storage-{_name}", ShardFormatError, "its pickle says 65536 elements of bf16, that is",
        wrong_storage(_change),
    )  # fmt: skip


def without_storage(bench: Bench) -> Path:
    entries = bench.entries()
    del entries[f"{ROOT}/data/3"]
    return bench.with_entries(entries)


CASES.add("storage-missing", ShardFormatError, "lacks the storage", without_storage)

# --- sets and shapes --------------------------------------------------------------------------


def changed(change: Callable[[Tensors], None], dtype: str = "bf16") -> Callable[[Bench], Path]:
    """Write the small model with other tensors."""

    def make(bench: Bench) -> Path:
        tensors: Tensors = dict(small_tensors())
        if dtype != "bf16":
            scale = {"f32": np.float32, "f16": np.float16}[dtype]
            rng = np.random.default_rng(1)
            tensors = {
                name: rng.normal(0, 0.02, array.shape).astype(scale)
                for name, array in tensors.items()
            }
        change(tensors)
        return small_checkpoint(bench.folder / "model", TOKENIZER, tensors=tensors, dtype=dtype)

    return make


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        items = {rename(name): array for name, array in tensors.items()}
        tensors.clear()
        tensors.update(items)

    return change


def put(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: np.zeros(shape, np.uint16)})


for _name, _sentence, _change in (
    ("missing", f"missing 1 ({W2})", lambda tensors: tensors.pop(W2)),
    ("missing-norm", "lacks norm.weight: this is not a Llama 2", lambda t: t.pop(NORM)),
    ("missing-layer-0", "lacks layers.0.attention.wq.weight",
     lambda t: [t.pop(n) for n in list(t) if n.startswith("layers.0.")]),
    ("extra", "unexpected 1 (lm_head.weight)", put("lm_head.weight", (4,))),
    ("lora", "unexpected 1 (layers.0.lora_a.weight)", put("layers.0.lora_a.weight", (4, 4))),
    ("hugging-face-names", "lacks norm.weight", renamed(lambda name: f"model.{name}")),
    ("shape", f"{W2} has the shape (16, 40)", put(W2, (16, 40))),
    ("norm-2d", "norm.weight has the shape (16, 1)", put(NORM, (16, 1))),
    ("layer-gap", "unexpected", renamed(lambda n: n.replace("layers.1.", "layers.7."))),
    ("layer-huge", "cannot make", renamed(lambda n: n.replace("layers.1.", "layers.999999."))),
):  # fmt: skip
    CASES.add(
        f"set-{_name}",
        TensorSetError,
        _sentence,
        changed(_change),  # type: ignore[arg-type]
    ) if _name not in ("layer-gap", "layer-huge", "missing-layer-0") else None


def with_params(change: Callable[[Tensors], None]) -> Callable[[Bench], Path]:
    """As `changed`, with a params.json that leaves the sizes to the tensors."""

    def make(bench: Bench) -> Path:
        tensors: Tensors = dict(small_tensors())
        change(tensors)
        params: Mapping[str, object] = {"n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
        return small_checkpoint(bench.folder / "model", TOKENIZER, tensors=tensors, params=params)

    return make


CASES.add("set-layer-gap", TensorSetError, "missing", with_params(
    renamed(lambda n: n.replace("layers.1.", "layers.7."))))  # fmt: skip
CASES.add("set-layer-huge", TensorSetError, "tensors cannot make 1000000 layers", with_params(
    renamed(lambda n: n.replace("layers.1.", "layers.999999."))))  # fmt: skip
for _label, _odd in (
    ("long", "x" * 4000), ("control-characters", "\x1b[2J\nevil\r"), ("not-ascii", "nörm"),
    ("layer-of-4000-digits", "layers." + "9" * 4000 + ".x.weight"),
):  # fmt: skip
    CASES.add(f"name-{_label}", TensorSetError, "expected at most 200 printable ASCII characters",
              changed(put(_odd, (1,))))  # fmt: skip
CASES.add("set-layer-number-of-150-digits", TensorSetError, "unexpected", with_params(
    put("layers." + "9" * 150 + ".x.weight", (1,))))  # fmt: skip
CASES.add("set-no-layers", TensorSetError, "lacks layers.0.attention.wq.weight", with_params(
    lambda t: [t.pop(n) for n in list(t) if n.startswith("layers.")] and None))  # fmt: skip
CASES.add("set-wq-more-shards", MissingShardError, "the checkpoint has 2 shards", with_params(
    put("layers.0.attention.wq.weight", (8, 16))))  # fmt: skip
CASES.add("set-wq-rows", TensorSetError, "Are all shards of one download", with_params(
    put("layers.0.attention.wq.weight", (11, 16))))  # fmt: skip
CASES.add("set-empty", TensorSetError, "lacks norm.weight", lambda bench: bench.with_pickle(
    b"\x80\x02}."))  # fmt: skip

# --- dtypes -----------------------------------------------------------------------------------

for _kind in ("Double", "Long", "Int", "Char", "Byte", "Bool", "ComplexFloat", "QInt8"):
    CASES.add(
        f"dtype-{_kind.lower()}",
        UnsafePickleError,
        f"asks for the global 'torch.{_kind}Storage'",
        one_tensor(tensor(storage(65536, "0", f"{_kind}Storage"))),
    )


def mixed(bench: Bench) -> Path:
    """Say of one storage that it is f16."""
    sound = bench.pickle()
    return bench.with_pickle(sound.replace(b"BFloat16Storage", b"HalfStorage", 1))


def mixed_in_shards(bench: Bench) -> Path:
    tensors: Tensors = {
        name: np.zeros(shape, np.float16) for name, shape in tensor_shapes(SMALL.config).items()
    }
    folder = bench.shards(2)
    other = small_checkpoint(bench.folder / "other", TOKENIZER, tensors=tensors, dtype="f16")
    halves = bench.shards(2, "halves", other)
    (halves / "consolidated.01.pth").replace(folder / "consolidated.01.pth")
    return folder


# --- numbers ----------------------------------------------------------------------------------

_VALUES: dict[str, tuple[dict[str, Any], ...]] = {
    "f32": ({"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf},),
    "f16": ({"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf},),
    "bf16": ({"nan": 0x7FC0, "inf": 0x7F80, "minus-inf": 0xFF80},),
}


def poke(name: str, value: Any) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].reshape(-1)[13 % tensors[name].size] = value

    return change


for _dtype, (_values,) in _VALUES.items():
    for _label, _value in _values.items():
        for _where in ("tok_embeddings.weight", WQ, NORM, "output.weight"):
            _short = _where.removesuffix(".weight").rpartition(".")[2].replace("_", "-")
            CASES.add(
                f"number-{_dtype}-{_label}-{_short}",
                NonFiniteWeightError,
                _where,
                changed(poke(_where, _value), _dtype),
            )
CASES.add("number-too-large", QuantizationError, f"{WQ}: ", changed(poke(WQ, 3e38), "f32"))
CASES.add("dtype-mixed", TensorSetError, "expected one (bf16: ", mixed)
CASES.add("dtype-mixed-in-shards", TensorSetError, "expected one (bf16: ", mixed_in_shards)
