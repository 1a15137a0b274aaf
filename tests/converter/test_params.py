"""params.json: the config, sizes left to the tensors, and what is refused."""

from __future__ import annotations

import pytest

from converter.pth_files import (
    Make,
    rewrite_params,
)
from converter.pth_files import (
    checkpoint_refused as refused,
)
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.errors import (
    ParamsError,
    TensorSetError,
)


def test_what_params_leave_out_comes_from_the_tensors(make: Make) -> None:
    with MetaCheckpoint.open(make()) as checkpoint:
        expected = checkpoint.config
    for absent in (["vocab_size"], ["multiple_of"], ["dim", "n_layers", "vocab_size"]):
        folder = rewrite_params(make(), **dict.fromkeys(absent))
        with MetaCheckpoint.open(folder) as checkpoint:
            assert checkpoint.config == expected
    folder = rewrite_params(make(), vocab_size=4096, max_seq_len=2048, rope_theta=1000000)
    with MetaCheckpoint.open(folder) as checkpoint:
        assert checkpoint.config.vocab_size == 4096
        assert checkpoint.config.max_seq_len == 2048
        assert checkpoint.config.rope_theta == 1e6
    with MetaCheckpoint.open(rewrite_params(make(), max_batch_size=4)) as checkpoint:
        assert checkpoint.config == expected


def test_ffn_dim_multiplier(make: Make) -> None:
    # hidden_dim of the small model is 48: int(2 * 4 * 16 / 3) = 42, to a multiple of 8.
    with MetaCheckpoint.open(rewrite_params(make(), ffn_dim_multiplier=1.1)) as checkpoint:
        assert checkpoint.config.hidden_dim == 48
    refused(
        rewrite_params(make(), ffn_dim_multiplier=1.3),
        ParamsError,
        r"hidden size of 56 \(dim 16, multiple_of 8, ffn_dim_multiplier 1\.3\).*w1 has 48 rows",
    )


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_heads": None}, "lacks n_heads"),
        ({"norm_eps": None}, "lacks norm_eps"),
        ({"dim": 16.0}, r"dim is 16\.0; expected a positive integer"),
        ({"dim": True}, "dim is True"),
        ({"dim": "16"}, "dim is '16'"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"vocab_size": -2}, "vocab_size is -2"),
        ({"norm_eps": "1e-5"}, "norm_eps is '1e-5'"),
        ({"norm_eps": -1.0}, r"norm_eps is -1\.0"),
        ({"norm_eps": True}, "norm_eps is True"),
        ({"rope_theta": 0.5}, "rope_theta is 0.5; expected a number in"),
        ({"ffn_dim_multiplier": 0}, r"ffn_dim_multiplier is 0"),
        ({"multiple_of": None, "ffn_dim_multiplier": 1.3}, "without multiple_of"),
        ({"dim": 32}, "says dim 32; norm.weight says 16"),
        ({"n_layers": 3}, "says n_layers 3; the tensors' names says 2"),
        ({"vocab_size": 32000}, "says vocab_size 32000; tok_embeddings.weight says 4096"),
        ({"multiple_of": 256}, "hidden size of 256"),
        ({"n_heads": 5}, "dim 16 is not a multiple of n_heads 5"),
        ({"n_heads": 16, "n_kv_heads": 16}, "head_dim 1 is odd"),
        ({"n_kv_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"sliding_window": 4096}, r"unknown keys \['sliding_window'\]"),
        ({"use_scaled_rope": True}, "Llama 3"),
    ],
)
def test_params_that_are_refused(make: Make, changes: dict[str, object], match: str) -> None:
    refused(rewrite_params(make(), **changes), ParamsError, match)


def test_absent_n_kv_heads_means_n_heads(make: Make) -> None:
    refused(
        rewrite_params(make(), n_kv_heads=None),
        TensorSetError,
        r"attention\.wk\.weight has the shape \(8, 16\); expected \(16, 16\)",
    )


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "holds a list; expected an object"),
        (b'{"dim": 1, "dim": 2}', "a key appears twice"),
        (b'{"norm_eps": NaN}', "NaN is not a number"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"dim": ' + b"9" * 6000 + b"}", "not valid JSON"),
        (b" " * (1 << 20) + b"{}", "expected a small file"),
        (b"<!DOCTYPE html>", r"params\.json is a web page"),
    ],
)
def test_params_files_that_are_refused(make: Make, content: bytes, match: str) -> None:
    folder = make()
    (folder / "params.json").write_bytes(content)
    refused(folder, ParamsError, match)


def test_params_that_are_missing(make: Make) -> None:
    folder = make()
    (folder / "params.json").unlink()
    refused(folder, ParamsError, r"params\.json is missing")
