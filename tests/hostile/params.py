"""Cases of params.json: every key absent, of a wrong type, zero, negative, huge; no JSON at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from converter.pth_files import SMALL
from hostile.bench import Bench, Table
from llama2q.errors import Llama2qError, ParamsError, TensorSetError

CASES = Table()


def content(data: bytes) -> Callable[[Bench], Path]:
    def make(bench: Bench) -> Path:
        folder = bench.checkpoint()
        (folder / "params.json").write_bytes(data)
        return folder

    return make


def values(**changes: object) -> Callable[[Bench], Path]:
    """Change keys; `...` removes one."""
    merged = {**SMALL.params, **changes}
    return content(json.dumps({k: v for k, v in merged.items() if v is not ...}).encode())


def literal(key: str, text: str) -> Callable[[Bench], Path]:
    """Set a key to a text that need not be JSON."""
    others = json.dumps({k: v for k, v in SMALL.params.items() if k != key})
    return content(f'{{"{key}": {text}, {others[1:]}'.encode())


def add(
    name: str,
    sentence: str,
    make: Callable[[Bench], Path],
    error: type[Llama2qError] = ParamsError,
) -> None:
    CASES.add(f"params-{name}", error, sentence, make)


INTEGERS = ("dim", "n_layers", "n_heads", "n_kv_heads", "multiple_of", "vocab_size", "max_seq_len")
FLOATS = ("ffn_dim_multiplier", "norm_eps", "rope_theta")

for _key in INTEGERS:
    for _label, _value in (
        ("zero", 0), ("negative", -7), ("huge", 10**18), ("text", "8"), ("float", 8.0),
        ("true", True), ("list", [8]), ("object", {"x": 8}),
    ):  # fmt: skip
        add(
            f"{_key}-{_label}".replace("_", "-"),
            f"params.json: {_key} is {_value!r}; expected a positive integer",
            values(**{_key: _value}),
        )
    add(f"{_key}-nan".replace("_", "-"), "NaN is not a number of JSON", literal(_key, "NaN"))
    add(f"{_key}-digits".replace("_", "-"), "not valid JSON", literal(_key, "9" * 5000))
for _key in FLOATS:
    for _label, _value in (
        ("zero", 0), ("negative", -1e-5), ("huge", 1e300), ("text", "1e-5"), ("true", True),
        ("list", [1.0]), ("object", {}),
    ):  # fmt: skip
        add(
            f"{_key}-{_label}".replace("_", "-"),
            f"params.json: {_key} is ",
            values(**{_key: _value}),
        )
    for _text in ("NaN", "Infinity", "-Infinity"):
        add(
            f"{_key}-{_text.lower()}".replace("_", "-"),
            f"{_text} is not a number of JSON",
            literal(_key, _text),
        )
    add(f"{_key}-1e999".replace("_", "-"), f"{_key} is inf", literal(_key, "1e999"))
    add(f"{_key}-digits".replace("_", "-"), "not valid JSON", literal(_key, "9" * 5000))
    add(f"{_key}-400-digits".replace("_", "-"), f"{_key} is ", literal(_key, "9" * 400))

# Other sizes than the tensors have.
for _key, _value, _sentence, _error in (
    ("dim", 32, "params.json says dim 32; norm.weight says 16", ParamsError),
    ("n_layers", 3, "says n_layers 3; the tensors' names says 2", ParamsError),
    ("n_heads", 3, "dim 16 is not a multiple of n_heads 3", ParamsError),
    ("n_heads", 16, "head_dim 1 is odd", ParamsError),
    ("n_heads", 2**31 - 1, "is not a multiple of n_heads", ParamsError),
    ("n_kv_heads", 3, "n_heads 4 is not a multiple of n_kv_heads 3", ParamsError),
    ("n_kv_heads", 4, "attention.wk.weight has the shape (8, 16)", TensorSetError),
    ("n_kv_heads", ..., "attention.wk.weight has the shape (8, 16)", TensorSetError),
    ("n_heads", 8, "attention.wk.weight has the shape (8, 16)", TensorSetError),
    ("vocab_size", 32000, "says vocab_size 32000; tok_embeddings.weight says 4096", ParamsError),
    ("multiple_of", 64, "gives a hidden size of 64", ParamsError),
    ("multiple_of", 2**31 - 1, "gives a hidden size of 2147483647", ParamsError),
    ("ffn_dim_multiplier", 2.5, "gives a hidden size of", ParamsError),
    ("ffn_dim_multiplier", 1001, "expected a number in [0.001, 1000]", ParamsError),
    ("n_heads", ..., "params.json lacks n_heads", ParamsError),
    ("n_heads", None, "params.json lacks n_heads", ParamsError),
    ("norm_eps", ..., "params.json lacks norm_eps", ParamsError),
    ("norm_eps", 3.0, "norm_eps is 3.0", ParamsError),
    ("rope_theta", 0.5, "rope_theta is 0.5", ParamsError),
    ("max_batch_size", "many", "max_batch_size is 'many'", ParamsError),
    ("max_batch_size", -1, "max_batch_size is -1", ParamsError),
    ("use_scaled_rope", True, "Llama 3.1", ParamsError),
    ("use_scaled_rope", "yes", "use_scaled_rope is 'yes'", ParamsError),
    ("rope_scaling", {"type": "yarn"}, "has unknown keys ['rope_scaling']", ParamsError),
    ("moe", {"num_experts": 8}, "has unknown keys ['moe']", ParamsError),
    ("__class__", "evil", "has unknown keys ['__class__']", ParamsError),
    ("k" * 100_000, 1, "has unknown keys ['kkk", ParamsError),
):
    _label = (
        {...: "absent", None: "null"}.get(_value, _value) if not isinstance(_value, dict) else "set"
    )
    _slug = f"{_key[:20]}-{_label}".replace("_", "-").replace(".", "-").lower()
    add(f"{_slug}", _sentence, values(**{_key: _value}), _error)
add("two-unknown", "has unknown keys ['a', 'b']", values(a=1, b=2))
add("multiplier-alone", "ffn_dim_multiplier without multiple_of",
    values(ffn_dim_multiplier=1.3, multiple_of=...))  # fmt: skip

_SOUND = json.dumps(SMALL.params).encode()
for _name, _data, _sentence in (
    ("empty", b"", "is not valid JSON"),
    ("blank", b"  \n", "is not valid JSON"),
    ("binary", bytes(range(256)), "is not valid JSON"),
    ("zeros", bytes(200), "is not valid JSON"),
    ("utf16", _SOUND.decode().encode("utf-16"), "is not valid JSON"),
    ("cut", _SOUND[:-1], "is not valid JSON"),
    ("cut-in-half", _SOUND[: len(_SOUND) // 2], "is not valid JSON"),
    ("two-objects", _SOUND + _SOUND, "is not valid JSON"),
    ("single-quotes", _SOUND.replace(b'"', b"'"), "is not valid JSON"),
    ("comment", b"// params\n" + _SOUND, "is not valid JSON"),
    ("list", b"[" + _SOUND + b"]", "holds a list; expected an object"),
    ("number", b"7", "holds a int; expected an object"),
    ("null", b"null", "holds a NoneType; expected an object"),
    ("deep-lists", b"[" * 200_000, "is not valid JSON"),
    ("deep-objects", b'{"a":' * 150_000, "is not valid JSON"),
    ("deep-closed", b'{"dim":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is not valid JSON"),
    ("huge", b" " * (2 << 20), "has over 1048576 bytes"),
    ("duplicate-key", _SOUND[:-1] + b', "n_heads": 4}', "a key appears twice"),
    ("duplicate-inside", _SOUND[:-1] + b', "x": {"a": 1, "a": 2}}', "a key appears twice"),
    ("empty-object", b"{}", "params.json lacks n_heads, norm_eps"),
    ("web-page", b"<!DOCTYPE html><html>", "params.json is a web page: the signed URL from Meta"),
    ("xml-error", b'<?xml version="1.0"?><Error>', "params.json is a web page"),
    ("git-lfs", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    ("escapes", b'{"\\u001b[2J": 1}', "has unknown keys"),
    ("lone-surrogate", b'{"\\ud800": 1}', "has unknown keys"),
):
    add(_name, _sentence, content(_data))


def removed(bench: Bench) -> Path:
    folder = bench.checkpoint()
    (folder / "params.json").unlink()
    return folder


def a_folder(bench: Bench) -> Path:
    folder = removed(bench)
    (folder / "params.json").mkdir()
    return folder


add("absent", "params.json is missing", removed)
add("folder", "params.json is missing", a_folder)
