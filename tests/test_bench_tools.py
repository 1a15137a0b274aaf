"""The tools around the benchmarks, without a peer: GGUF's bits, reports, limits."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import bench_convert
import bench_limits
import bench_linalg
import bench_peers
import gguf_file
import peers_report
import q6_k
from llama2q.converter.gguf_tensors import gguf_name
from llama2q.errors import ExportError
from llama2q.format import L2qFile
from llama2q.quant import grid_values, int4, int8
from numpy_quantizers import SMALL
from peers_build import TIERS
from peers_driver import Job


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], int, bytes]]]:
    """Read a GGUF file by its specification: metadata, and (shape, type, bytes) per tensor."""
    data = path.read_bytes()
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0]

    def text() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at].decode()

    def value(kind: int) -> Any:
        if kind == 8:
            return text()
        if kind == 9:
            inner, count = take("I"), take("Q")
            return [value(inner) for _ in range(count)]
        return take({4: "I", 5: "i", 6: "f", 7: "?"}[kind])

    assert (data[:4], struct.unpack_from("<I", data, 4)[0]) == (b"GGUF", 3)
    at = 8
    n_tensors, n_values = take("Q"), take("Q")
    metadata = {}
    for _ in range(n_values):
        key = text()
        metadata[key] = value(take("I"))
    infos = []
    for _ in range(n_tensors):
        name, n_dims = text(), take("I")
        shape = tuple(take("Q") for _ in range(n_dims))[::-1]
        infos.append((name, shape, take("I"), take("Q")))
    start = at + -at % 32
    tensors = {}
    for name, shape, kind, offset in infos:
        per_block, n_bytes = {0: (1, 4), 2: (32, 18), 8: (32, 34), 14: (256, 210)}[kind]
        size = int(np.prod(shape)) // per_block * n_bytes
        assert offset % 32 == 0
        tensors[name] = (shape, kind, data[start + offset : start + offset + size])
        assert len(tensors[name][2]) == size
    return metadata, tensors


def dequantize(shape: tuple[int, ...], kind: int, data: bytes) -> NDArray[np.float32]:
    """Decode Q4_0, Q8_0 or F32 by GGUF's specification."""
    if kind == 0:
        return np.frombuffer(data, np.float32).reshape(shape)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, 18 if kind == 2 else 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == 2:
        codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
        return (scale * (codes.astype(np.float32) - 8)).reshape(shape)
    return (scale * blocks[:, 2:].copy().view(np.int8)).reshape(shape)


def decoded(file: L2qFile, name: str) -> list[NDArray[np.float32]]:
    """Decode a matrix by this project's definition, one array per source."""
    matrix = file.matrix(name)
    codes, scales = file.array(f"{name}.codes"), file.array(f"{name}.scales")
    if matrix.is_table:
        return [int8.decode_rows(codes, scales, 32)]
    shape, step = (matrix.rows, matrix.cols), len(matrix.sources)
    parts = [(codes[i::step], scales[i::step]) for i in range(step)]
    if matrix.stored.type == "int8":
        return [int8.decode(*part, *shape) for part in parts]
    return [int4.decode(*part, *shape, grid_values("uniform")) for part in parts]


def test_gguf_holds_the_same_weights(convert_mini: Callable[..., Path], tmp_path: Path) -> None:
    source = convert_mini(group_size=32, grid="uniform")
    target = tmp_path / "mini.gguf"
    gguf_file.export(source, target)
    metadata, tensors = read_gguf(target)
    with L2qFile(source) as file:
        config = file.config
        assert metadata["llama.block_count"] == config.n_layers
        assert metadata["llama.attention.head_count_kv"] == config.n_kv_heads
        assert len(metadata["tokenizer.ggml.tokens"]) == config.vocab_size
        assert len(tensors) == 9 * config.n_layers + 3
        for name in file.recipe.tensors:
            matrix = file.matrix(name)
            for source_name, weights in zip(matrix.sources, decoded(file, name), strict=True):
                tensor = tensors[gguf_name(source_name)]
                np.testing.assert_array_equal(dequantize(*tensor), weights, err_msg=source_name)
        norm = tensors["blk.1.ffn_norm.weight"]
        np.testing.assert_array_equal(
            dequantize(*norm), file.array("layers.1.ffn_norm.weight"), strict=True
        )


def test_the_output_matrix_as_q6_k(convert_mini: Callable[..., Path], tmp_path: Path) -> None:
    source = convert_mini(group_size=32, grid="uniform")
    target = tmp_path / "mini.gguf"
    assert gguf_file.main([str(source), str(target), "--output", "q6_k"]) == 0
    with L2qFile(source) as file:
        (weights,) = decoded(file, "output.weight")
    found = q6_k.decode(q6_blocks(target, weights.shape))
    # The extreme of a group is code -32; the same with the other sign is cut to 31, a step off. A
    # step is off by half a step of the scales and by the rounding of d to f16.
    step = np.abs(weights.reshape(-1, 16)).max(1) / 32
    scale_step = np.abs(weights.reshape(-1, 256)).max(1).repeat(16) / 32 / 127
    slack = scale_step / 2 + step / 2048
    error = np.abs(found - weights).reshape(-1, 16).max(1)
    assert (error <= step + 33 * slack).all()
    assert np.median(error / (step + 1e-9)) < 0.6
    assert error.max() > 0


def q6_blocks(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Take the output matrix out of a GGUF file: its blocks of Q6_K."""
    _, tensors = read_gguf(path)
    found, kind, data = tensors["output.weight"]
    assert (found, kind) == (shape, 14)
    return np.frombuffer(data, np.uint8).reshape(shape[0], shape[1] // 256, 210)


def test_q6_k_of_zeros_and_of_one_value() -> None:
    values = np.zeros((2, 512), np.float32)
    values[1, 300] = -3.0
    np.testing.assert_allclose(q6_k.decode(q6_k.encode(values)), values, rtol=1e-3)


def test_an_output_matrix_that_q6_k_cannot_hold(
    convert_mini: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"output.weight of 256 columns cannot be Q6_K"):
        gguf_file.export(convert_mini(quant="none"), tmp_path / "x.gguf", "q6_k")
    assert list(tmp_path.iterdir()) == []


def test_gguf_refuses_groups_that_are_not_whole(tmp_path: Path) -> None:
    from l2q_files import write_small

    assert SMALL.hidden_dim % 32 != 0
    write_small(tmp_path / "x.l2q", group_size=32, grid="uniform")
    assert gguf_file.main([str(tmp_path / "x.l2q"), str(tmp_path / "x.gguf")]) == 1


def result(**peer: list[float]) -> bench_peers.Result:
    """Turns of three: ours doubles where the peer does."""
    found = bench_peers.Result(Job("decode", 16, 1024), "native", "7b-nonuniform-64.l2q")
    for setting, rates in peer.items():
        turns = {"peer": rates, "f16": [2 * rate for rate in rates], "int8": [40.0] * len(rates)}
        found.turns[setting.replace("_", " ")] = turns
    found.bounds = {"f16": ("bandwidth", 0.025), "int8": ("bandwidth", None)}
    return found


def test_a_row_takes_the_turns_with_the_peers_best_setting() -> None:
    line = peers_report.line_of(result(fa=[5.0, 9.0, 1.0], no_fa=[8.0, 10.0, 12.0], q8=[7.0]))
    assert line["peer_setting"] == "no fa"
    assert line["peer"] == 10.0
    assert line["ours"] == {"f16": 20.0, "int8": 40.0}
    assert line["ratio"] == {"f16": 2.0, "int8": 4.0}
    assert line["share_of_limit"] == {"f16": pytest.approx(0.5), "int8": None}
    assert line["spread"] == pytest.approx(0.4)


def test_a_report_replaces_the_last_one(tmp_path: Path) -> None:
    load = {
        "side": "llama2q", "pages": "warm", "ready_seconds": 0.2, "first_token_seconds": 0.3,
        "anonymous_bytes": 10**8, "mapped_bytes": 10**9,
    }  # fmt: skip
    fairness = {
        "tokens": 50, "same_argmax": 1.0, "kl_divergence": 1e-4,
        "perplexity_ours": 5.0, "perplexity_peer": 5.1,
    }  # fmt: skip
    limits = {"native": {"read_bytes_per_second": 3e10, "int8_ops_per_second": 9e11}}
    rows = [peers_report.line_of(result(fa=[10.0]))]
    report = peers_report.Report({"CPU": "x"}, limits, rows, [load], fairness, ["a note"])
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["ratio"]["f16"] == 2.0
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(ValueError, match="needs one line"):
        report.write_into(page)
    page.write_text(f"before\n{peers_report.BEGIN}\nold\n{peers_report.END}\nafter\n")
    report.write_into(page)
    text = page.read_text()
    report.write_into(page)
    assert page.read_text() == text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    for part in ("decode at depth 1024", "2.00", "50 % of bandwidth", "30.0", "- a note"):
        assert part in text


def test_the_peers_cache_grows_once() -> None:
    """Depths descend after the prompts: what a long prompt computed is kept, then cut."""
    jobs = list(bench_peers.jobs_of(bench_peers.FULL, True))
    assert [job.tokens for job in jobs if job.kind == "prefill"] == [128, 512, 2048]
    assert [job.depth for job in jobs if job.kind == "decode"] == [4000, 1024, 0]


def test_tiers_name_instruction_sets() -> None:
    assert TIERS["native"].is_available
    assert {tier.isa for tier in TIERS.values()} == {None, "avx2", "avxvnni"}


@pytest.mark.parametrize(
    "wrong", [["--tiers", "sse"], ["--kinds", "rows"], ["--threads", "0"], ["--repeat", "-1"]]
)
def test_wrong_options(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_peers.parse_arguments(wrong)
    assert "error" in capsys.readouterr().err


def test_limits_as_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--seconds", "0.01", "--bytes", str(2 << 20)]
    assert bench_limits.main([*quick, "--json"]) == 0
    limits = json.loads(capsys.readouterr().out)
    assert limits["rows"][0]["isa"] == "scalar"
    assert all(row["read_bytes_per_second"] > 0 for row in limits["rows"])
    assert bench_limits.main(quick) == 0
    assert "int8 GOPS" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="drops files from memory as Linux does")
@pytest.mark.skipif(shutil.which("dd") is None, reason="needs dd")
def test_conversions_beside_a_copy(
    mini_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--setting", "quant=int8,group_size=32", "--setting", "quant=none"]
    scratch = ["--scratch", str(tmp_path)]
    assert bench_convert.main([str(mini_checkpoint), *settings, *scratch]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [row.split("|")[1].strip() for row in rows]
    assert names == ["task", "reading", "copy", "quant int8, group_size 32", "quant none"]
    assert list(tmp_path.iterdir()) == []
    assert bench_convert.main([str(tmp_path / "none"), *scratch]) == 1
    assert "none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_convert.main([str(mini_checkpoint), "--setting", "int8"])


def test_linear_algebra(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--size", "64", "--rows", "8", "--rounds", "1"]
    assert bench_linalg.main([*quick, "--threads", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["what"] for row in rows] == ["a.T @ b", "x.T @ x", "LDL, Cholesky"]
    assert bench_linalg.main(quick) == 0
    table = capsys.readouterr().out
    assert all(row["what"] in table for row in rows)
    assert "llama2q GFLOPS" in table
    with pytest.raises(SystemExit):
        bench_linalg.main(["--size", "0"])
