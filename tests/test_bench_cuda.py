"""tools/bench_cuda.py without a GPU: its running of parts, its models, its report, a dry run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench_cuda
import cuda_bench_models
import cuda_bench_peer
import cuda_bench_report
from cuda_bench_run import Context, Part, PartError, Recorder, Settings, run_part
from cuda_bench_split_report import predict
from llama2q.format import L2qFile
from synthetic_shapes import SHAPES

ROOT = Path(bench_cuda.__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CUDA is supported on Linux alone")


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    settings = Settings(out=tmp_path / "out", work=tmp_path, shapes=("tiny",), dry=True)
    context = Context(settings, Recorder(settings.out))
    context.package = tmp_path  # nothing in it: the package that this Python finds
    yield context
    context.recorder.close()


def results(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_cuda.main(["--plan", "--parts", "a,c,e"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["part", "a", "c", "e", "together"]
    assert bench_cuda.main(["--plan"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert float(last[1]) < float(last[2]) < 540
    for wrong in (["--parts", "a,z"], ["--shapes", "7b,8b"]):
        with pytest.raises(SystemExit):
            bench_cuda.main([*wrong, "--plan"])


def test_parts_are_isolated(context: Context) -> None:
    def fails(_: Context) -> None:
        raise ZeroDivisionError("on purpose")

    def cannot(_: Context) -> None:
        raise PartError("it is not there")

    def works(context: Context) -> None:
        context.recorder.add("w", {"value": 3})

    for key, run, needs in (("x", fails, ()), ("y", cannot, ()), ("z", works, ("programs",))):
        run_part(context, Part(key, key, 1, 1, run, needs))
    run_part(context, Part("w", "w", 1, 1, works))
    outcomes = {row["key"]: row for row in results(context.settings.out) if row["part"] == "parts"}
    assert outcomes["x"]["error"] == "ZeroDivisionError: on purpose"
    assert outcomes["y"]["error"] == "it is not there"
    assert outcomes["z"]["skipped"] == "programs could not be built"
    assert "error" not in outcomes["w"]
    assert context.recorder.of("w") == [{"part": "w", "value": 3}]


def has_ended(pid: int) -> bool:
    """Wait for it; a zombie, which nobody has reaped yet, has ended."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        except FileNotFoundError:
            return True
        if state.split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_rows_come_as_they_are_printed(context: Context) -> None:
    """What was printed before the time was up is kept, and the children are ended."""
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('{\"a\": 1}', flush=True); print('no row', flush=True)\n"
        "print('{\"child\": %d}' % child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    rows = context.rows("p", "a program", [sys.executable, "-c", program], 3.0, shape="s")
    assert time.monotonic() - started < 30
    assert rows[0] == {"part": "p", "shape": "s", "a": 1}
    assert rows[-1]["error"].startswith("a program: its time was up")
    assert has_ended(rows[1]["child"])
    missing = context.rows("p", "none", ["/nowhere/program"], 3.0)
    assert "/nowhere/program" in missing[0]["error"]
    failing = context.rows("p", "exit", [sys.executable, "-c", "raise SystemExit(3)"], 30.0)
    assert "exit code 3" in failing[0]["error"]


def test_models_are_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert cuda_bench_models.main([*folder, "--shapes", "tiny"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["layers"], row["whole_layers"]) == (4, 4)
    path = tmp_path / "tiny.l2q"
    with L2qFile(path) as file:
        file.verify()
        first, last = (file.array(f"layers.{layer}.attention.wo.weight.codes") for layer in (0, 3))
        assert (first == last).all()
        assert len(set(first.reshape(-1).tolist())) > 100


def test_models_that_take_too_long_have_fewer_layers(tmp_path: Path) -> None:
    shape = SHAPES["70b"]
    assert cuda_bench_models.affordable(shape, 1e12, tmp_path).n_layers in range(8, 81)
    assert cuda_bench_models.affordable(shape, 10e9, tmp_path).n_layers in range(8, 22)
    assert cuda_bench_models.affordable(SHAPES["tiny"], 0.0, tmp_path) == SHAPES["tiny"]


def test_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    shape = replace(SHAPES["1.1b"], n_layers=1, dim=256, n_heads=4, n_kv_heads=2, vocab_size=4200)
    path = tmp_path / "small.gguf"
    cuda_bench_models.write_gguf(shape, path)
    reader = gguf.GGUFReader(path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["output.weight"] == "Q6_K"
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 4200
    assert list(tmp_path.iterdir()) == [path]


def test_llama_cpp_is_packed(tmp_path: Path) -> None:
    source = tmp_path / "vendor"
    for name in ("ggml/CMakeLists.txt", "tools/ui/big.js", "tools/llama-bench/x.cpp", "docs/a.md"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x", encoding="utf-8")
    target = tmp_path / "packed.tar.gz"
    assert cuda_bench_peer.pack(source, target) == target.stat().st_size
    with tarfile.open(target) as archive:
        names = [entry.name for entry in archive if entry.isfile()]
    assert names == ["llama.cpp/ggml/CMakeLists.txt", "llama.cpp/tools/llama-bench/x.cpp"]


def measured(recorder: Recorder) -> None:
    """A model of 10 layers, 1 GB each, 4 of them on the device."""
    common = {"shape": "13b", "layers": 40, "whole_layers": 40}
    decode = {**common, "kind": "decode", "tokens": 1, "depth": 0}
    recorder.add("limits", {"limit": "read", "us": 1.0, "per_second": 4e12})
    recorder.add("limits", {"limit": "int8 mma", "us": 1.0, "per_second": 1e15})
    for way in ("to", "from"):
        recorder.add("limits", {"limit": f"copy {way} the device, pinned", "us": 10.0})
    recorder.add("speed", {**decode, "seconds": 0.005, "tokens_per_second": 200.0,
                           "read_bytes": 10e9})  # fmt: skip
    host = {**decode, "memory": "none", "seconds": 0.1, "tokens_per_second": 10.0}
    recorder.add("split", {**host, "read_bytes": 10e9})
    load = {"kind": "load", "n_layers": 10, "device_layers": 4, "kv_bytes_per_token": 0}
    load |= {"device_weight_bytes": 4e9, "host_weight_bytes": 6e9, "plan": {"stream_tokens": 33}}
    recorder.add("split", {**common, **load, "memory": "7GB"})
    recorder.add("split", {**decode, "memory": "7GB", "seconds": 0.08, "tokens_per_second": 12.5})
    for streamed, times in ((True, (0.5, 0.5)), (False, (0.2, 1.9))):
        for tokens, seconds in zip((16, 512), times, strict=True):
            row = {"kind": "prefill", "streamed": streamed, "tokens": tokens, "seconds": seconds}
            recorder.add("stream", {**common, **row, "memory": "7GB"})
    peer = {
        "shape": "13b",
        "layers": 40,
        "kind": "decode",
        "tokens": 32,
        "depth": 0,
        "sequences": 1,
    }
    recorder.add("peer", {**peer, "tokens_per_second": 100.0})
    kernel = {"op": "wo", "shape": "13b", "weights": "int4", "tokens": 1, "limit": "read"}
    kernel |= {"bytes": 8e6, "weight_bytes": 8e6, "ops": 3e7, "us": 4.0, "us_p10": 3.9}
    recorder.add("kernels", {**kernel, "us_p90": 4.2})


def test_report(context: Context) -> None:
    recorder = context.recorder
    measured(recorder)
    row = recorder.of("split", kind="decode", memory="7GB")[0]
    load = recorder.of("split", kind="load")[0]
    # 4 GB at 2 TB/s, 6 GB at 100 GB/s, there and back in 10 us each.
    assert predict(recorder, row, load) == pytest.approx(0.002 + 0.06 + 20e-6)
    text = cuda_bench_report.report(recorder)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["13b", "7GB", "4 of 10", "0", "12.50", "16.12", "78 %"] in [row[:7] for row in cells]
    assert "Streaming is faster from 512 tokens on." in text
    assert '"auto" takes 33 tokens.' in text
    assert ["13b", "decode at depth 0", "200.0", "100.0", "2.00"] in cells
    assert ["13b: wo int4, 8 MB", "50 %", "70 %"] in cells
    assert any(row[:2] == ["13b", "wo int4"] and row[-2:] == ["2000 GB/s", "50 %"] for row in cells)


def test_a_section_that_fails(context: Context) -> None:
    measured(context.recorder)
    context.recorder.add("kernels", {"op": "broken", "us": "no number", "limit": "read"})
    text = cuda_bench_report.report(context.recorder)
    assert "This section could not be made" in text
    assert "## Whole models" in text


def test_without_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way on an installation that has no library: each part says what is missing."""
    out = tmp_path / "out"
    code = bench_cuda.main(
        ["--dry-run", "--installed", "--parts", "a,d,f,g", "--out", str(out), "--work",
         str(tmp_path / "work"), "--commit", "abc"]
    )  # fmt: skip
    rows = results(out)
    assert code == int(any("error" in row for row in rows))
    (facts,) = [row for row in rows if row["part"] == "facts"]
    assert facts["commit"] == "abc"
    parts = {row["key"]: row for row in rows if row["part"] == "parts"}
    assert parts["d"]["skipped"] == "programs could not be built"
    on_host = [row for row in rows if row["part"] == "split" and row.get("memory") == "none"]
    assert [row["kind"] for row in on_host] == ["load", "decode"]
    assert on_host[1]["tokens_per_second"] > 0
    assert "A dry run on the emulation" in (out / "report.md").read_text(encoding="utf-8")
    assert not (tmp_path / "work" / "models").exists()
    assert "report.md" in capsys.readouterr().out


def test_options_that_load_lacks(context: Context) -> None:
    load = {"device": "cpu", "turbo": True}
    job = {"file": "none.l2q", "load": load, "measures": []}
    worker = ROOT / "tools" / "cuda_bench_worker.py"
    (row,) = context.rows("p", "worker", [sys.executable, worker, json.dumps(job)], 60)
    assert row["skipped"] == "llama2q.load has no turbo"
    del load["turbo"]
    (row,) = context.rows("p", "worker", [sys.executable, worker, json.dumps(job)], 60)
    assert "none.l2q" in row["error"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests")
def test_dry_run(tmp_path: Path) -> None:
    """Built here, on the emulation: every part runs, none has an error."""
    out = tmp_path / "out"
    assert bench_cuda.main(["--dry-run", "--out", str(out), "--work", str(tmp_path / "w")]) == 0
    rows = results(out)
    assert {row["key"] for row in rows if row["part"] == "parts"} == {
        part.key for part in bench_cuda.PARTS
    }
    for part in ("check", "limits", "kernels", "speed", "split", "stream"):
        assert any(row["part"] == part for row in rows)
    kinds = {row["kind"] for row in rows if row["part"] == "speed"}
    assert kinds == {"load", "decode", "largest", "generate", "prefill", "memory"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH")
@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests")
@pytest.mark.parametrize("source", sorted(path.name for path in ROOT.glob("tools/cuda/*.cu")))
def test_programs_compile_for_a_device(source: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["nvcc", "-std=c++20", "-arch=sm_90", "-fmad=false", "--expt-relaxed-constexpr",
         "-Xcompiler=-Wall,-Wextra", "-Werror=all-warnings", f"-I{ROOT / 'csrc'}", "-c",
         str(ROOT / "tools" / "cuda" / source), "-o", str(tmp_path / "out.o")],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def test_rows_of_llama_cpp(context: Context) -> None:
    file = {"shape": "7b", "layers": 32}
    values = {"n_prompt": 0, "n_gen": 32, "n_depth": 1024, "avg_ts": 250.5, "stddev_ts": 0.1}
    for line in (json.dumps(values), f"I {json.dumps({**values, 'n_prompt': 512, 'n_gen': 0})}"):
        cuda_bench_peer._take_bench(context, file, line)
    cuda_bench_peer._take_bench(context, file, "no row {")
    kinds = [(row["kind"], row["tokens"], row["depth"]) for row in context.recorder.of("peer")]
    assert kinds == [("decode", 32, 1024), ("prefill", 512, 1024)]
