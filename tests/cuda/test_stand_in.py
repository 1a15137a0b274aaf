"""The split of layers over CPU and devices, with a second CPU backend standing in for a GPU.

Its results are the CPU's bit for bit, wherever the layers are; it counts the memory that it is
asked for, and fails where a test tells it to.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llama2q
from llama2q import devices
from llama2q.errors import DeviceError, InsufficientMemoryError, InvalidArgumentError
from llama2q.plan import KvChoice

LIBRARY = Path(llama2q.__file__).parent / "libllama2q_stand_in.so"
N_LAYERS = 6
PROMPT = "The house stood at the end of a long road, and nobody had lived in it for years."

pytestmark = pytest.mark.skipif(
    not LIBRARY.is_file(), reason="needs a build with -DLLAMA2Q_TEST_LIBRARIES=ON"
)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One device of 1 GiB, whose memory is all free again after the test."""
    monkeypatch.setenv(devices.LIBRARY_VARIABLE, str(LIBRARY))
    yield
    monkeypatch.setenv(devices.LIBRARY_VARIABLE, str(LIBRARY))
    monkeypatch.delenv("LLAMA2Q_STAND_IN_FAIL", raising=False)
    monkeypatch.delenv("LLAMA2Q_STAND_IN_DEVICES", raising=False)
    gc.collect()
    for device in devices.find():
        assert device.free_bytes == device.total_bytes


@pytest.fixture(scope="module")
def model(convert_mini: Callable[..., Path]) -> Path:
    return convert_mini()


def logits(path: Path, n_tokens: int = 300, **options: Any) -> NDArray[np.float32]:
    """More rows than a device has room for at once."""
    with llama2q.load(path, n_ctx=512, **options) as llm:
        ids = (llm.tokenizer.encode(PROMPT) * 20)[:n_tokens]
        return llm.logits(ids)


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
def test_the_cpu_s_bits(model: Path, kv_dtype: KvChoice) -> None:
    expected = logits(model, kv_dtype=kv_dtype, device="cpu")
    for gpu_layers in (1, 4, N_LAYERS):
        found = logits(model, kv_dtype=kv_dtype, device="cuda", gpu_layers=gpu_layers)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("quant", ["int8", "none"])
def test_other_types(convert_mini: Callable[..., Path], quant: str) -> None:
    path = convert_mini(quant=quant)
    expected = logits(path, 40, device="cpu")
    assert logits(path, 40, device="cuda", gpu_layers=3).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
def test_saved_sessions(model: Path, tmp_path: Path, kv_dtype: KvChoice) -> None:
    """Keys and values of a device's layers come back; another split computes them again."""
    how: dict[str, Any] = {"kv_dtype": kv_dtype, "n_ctx": 512, "device": "cuda"}
    with llama2q.load(model, gpu_layers=4, **how) as llm, llm.session() as session:
        session.append(llm.tokenizer.encode(PROMPT * 5))
        session.save(tmp_path / "a")
        expected = session.generate(seed=1, max_tokens=8)
    for gpu_layers, is_taken in ((4, True), (2, False)):
        with llama2q.load(model, gpu_layers=gpu_layers, **how) as llm, llm.session() as session:
            session.load(tmp_path / "a")
            found = session.generate(seed=1, max_tokens=8)
            assert found.token_ids == expected.token_ids
            assert (found.usage.cached_tokens > 0) == is_taken


def test_several_devices(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets what fits; the plan is exact to the byte."""
    monkeypatch.setenv("LLAMA2Q_STAND_IN_DEVICES", "3")
    (whole,) = plan_of(model, "cuda:0").devices
    expected = logits(model, device="cpu")
    budget = whole.work_bytes + (whole.total_bytes - whole.work_bytes) // 2
    with llama2q.load(model, n_ctx=512, device="cuda", gpu_memory=budget) as llm:
        shares = llm.engine.plan.devices
        assert len(shares) >= 2
        for share in shares:
            device = devices.find()[share.index]
            assert device.total_bytes - device.free_bytes == share.total_bytes <= budget
        ids = (llm.tokenizer.encode(PROMPT) * 20)[:300]
        assert llm.logits(ids).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kv_dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("gpu_layers", [1, 4])
def test_layers_that_visit(model: Path, kv_dtype: KvChoice, gpu_layers: int) -> None:
    """Whatever visits a device: the CPU's bits, in the cache too, for prompts in several passes."""
    expected = logits(model, 500, kv_dtype=kv_dtype, device="cpu")
    options: dict[str, Any] = {"device": "cuda", "gpu_layers": gpu_layers, "kv_dtype": kv_dtype}
    found = logits(model, 500, stream_prefill=33, **options)
    assert found.tobytes() == expected.tobytes()

    def texts(**options: Any) -> list[Any]:
        """A prompt by several passes that visit, then tokens that do not; prompts side by side."""
        with llama2q.load(model, n_ctx=1024, kv_dtype=kv_dtype, **options) as llm:
            ids = (llm.tokenizer.encode(PROMPT) * 40)[:700]
            one = llm.generate(ids, max_tokens=8, temperature=0)
            several = llm.generate([ids[:90], ids[:30], ids[40:170]], max_tokens=5, seed=1)
        return [one.token_ids, [completion.token_ids for completion in several]]

    wanted = texts(device="cpu")
    assert texts(device="cuda", gpu_layers=gpu_layers, stream_prefill=40) == wanted


@pytest.mark.parametrize("quant", ["int8", "none"])
def test_other_layers_that_visit(convert_mini: Callable[..., Path], quant: str) -> None:
    path = convert_mini(quant=quant)
    expected = logits(path, 80, device="cpu")
    found = logits(path, 80, device="cuda", gpu_layers=2, stream_prefill=40)
    assert found.tobytes() == expected.tobytes()


def test_room_for_layers_that_visit(model: Path) -> None:
    """It is planned to the byte; by itself only where many layers are the CPU's."""
    options: dict[str, Any] = {"device": "cuda", "gpu_layers": 2, "n_ctx": 512}
    (share,) = llama2q.plan(model, **options).devices
    assert share.stream_bytes == 0
    plan = llama2q.plan(model, stream_prefill=40, **options)
    (visited,) = plan.devices
    assert visited.stream_bytes > 0
    assert visited.total_bytes == share.total_bytes + visited.stream_bytes
    assert "The CPU's layers visit the GPU for 40 tokens of a prompt or more." in plan.message
    with llama2q.load(model, stream_prefill=40, **options) as llm:
        (device,), (loaded,) = devices.find(), llm.engine.plan.devices
        assert loaded.stream_bytes > 0
        assert device.total_bytes - device.free_bytes == loaded.total_bytes
    tight = visited.total_bytes - 1
    with pytest.raises(InsufficientMemoryError, match="they do not fit"):
        llama2q.plan(model, stream_prefill=40, gpu_memory=tight, **options)
    options["gpu_layers"] = "auto"
    (one,) = llama2q.plan(model, **{**options, "gpu_layers": 1}).devices
    options |= {"gpu_memory": one.total_bytes, "kv_dtype": "f16"}
    with pytest.raises(InsufficientMemoryError, match="no room for a layer that visits"):
        llama2q.plan(model, stream_prefill=40, **options)
    whole = llama2q.plan(model, device="cuda", stream_prefill=40, n_ctx=512)
    assert whole.stream_tokens is None
    with pytest.raises(InvalidArgumentError, match="stream_prefill is 0"):
        llama2q.plan(model, stream_prefill=0)


def test_prediction(model: Path) -> None:
    """Weights over bandwidths: what the CPU reads at 75 %, a device at 85 %, two hops each."""
    plan = llama2q.plan(model, device="cuda", gpu_layers=4)
    (share,) = plan.devices
    assert 0 < share.read_bytes == share.weight_bytes
    seconds = plan.read_bytes / (0.75 * 40e9) + share.read_bytes / (0.85 * 100e9) + 1e-4
    assert llama2q.predict(plan, host_bandwidth=40e9) == pytest.approx(1 / seconds)
    faster = llama2q.plan(model, device="cuda", gpu_layers=4, gpu_bandwidth="200GB")
    seconds -= share.read_bytes / (0.85 * 200e9)
    assert llama2q.predict(faster, host_bandwidth=40e9) == pytest.approx(1 / seconds)
    whole = llama2q.plan(model, device="cuda")
    assert whole.read_bytes == 0
    cpu = llama2q.plan(model, device="cpu")
    assert cpu.read_bytes == pytest.approx(plan.read_bytes + share.read_bytes, rel=0.01)
    measured = llama2q.predict(cpu)
    assert measured is not None
    assert measured > 0
    assert llama2q.predict(llama2q.plan(model, device="cpu", memory="1MB")) is None


def test_a_gpu_that_is_not_here(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be planned for without a library; nothing is known of its bandwidth."""
    monkeypatch.delenv(devices.LIBRARY_VARIABLE)
    plan = llama2q.plan(model, gpu_memory="1GB", n_ctx=512)
    (share,) = plan.devices
    assert (share.name, share.n_layers) == ("a GPU", N_LAYERS)
    assert llama2q.predict(plan) is None
    assert llama2q.predict(llama2q.plan(model, gpu_memory="1GB", gpu_bandwidth="1008GB"))
    assert llama2q.plan(model, gpu_memory="1GB", device="cpu").devices == ()


def test_the_largest_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few logits decide, the others stay on the device; the tokens are the same."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_k": 40},
        {"top_k": 64, "top_p": 0.5, "min_p": 0.05},
        {"top_k": 65},
        {"top_k": 5, "repetition_penalty": 1.2},
        {"temperature": 0, "logprobs": 2},
    ]

    def texts(**options: Any) -> list[Any]:
        with llama2q.load(model, n_ctx=128, **options) as llm:
            return [
                [c.token_ids for c in llm.generate([PROMPT, "A"], max_tokens=12, seed=3, **setting)]
                for setting in settings
            ]

    expected = texts(device="cpu")
    counts: list[int] = []
    real = llama2q.engine.Engine.forward_largest

    def counted(self: Any, spans: Any, k: int, cancel: Any = None) -> Any:
        counts.append(k)
        return real(self, spans, k, cancel)

    monkeypatch.setattr(llama2q.engine.Engine, "forward_largest", counted)
    assert texts(device="cuda", gpu_layers=3) == expected
    assert set(counts) == {1, 40, 64}


def plan_of(path: Path, device: str = "cuda", **options: Any) -> llama2q.Plan:
    return llama2q.plan(path, n_ctx=512, device=device, **options)


def test_text(model: Path) -> None:
    """Streams, batches, samples that share a prompt (blocks are copied), decoding by replay."""

    def texts(**options: Any) -> list[Any]:
        with llama2q.load(model, n_ctx=256, **options) as llm:
            greedy = llm.generate(PROMPT, max_tokens=40, temperature=0)
            sampled = llm.generate(PROMPT, max_tokens=30, seed=5, n=3)
            batch = llm.generate([PROMPT, "Once upon a time", "A"], max_tokens=20, seed=1)
            stream = "".join(chunk.text for chunk in llm.stream(PROMPT, max_tokens=10, seed=2))
            score = llm.score(PROMPT).logprobs
        return [
            greedy.token_ids,
            [sample.token_ids for sample in sampled.samples],
            [completion.token_ids for completion in batch],
            stream,
            score,
        ]

    expected = texts(device="cpu")
    assert texts(device="cuda") == expected
    assert texts(device="cuda", gpu_layers=2) == expected


def test_what_is_chosen(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with llama2q.load(model, n_ctx=128) as llm:
        (share,) = llm.engine.plan.devices
        assert share.n_layers == N_LAYERS
    assert "stand-in 0: layers 0 to 5: weights " in caplog.text
    with llama2q.load(model, n_ctx=128, device="cpu") as llm:
        assert llm.engine.plan.devices == ()
    with llama2q.load(model, n_ctx=128, gpu_layers=0) as llm:
        assert llm.engine.plan.devices == ()


def test_memory_is_planned(model: Path) -> None:
    whole = plan_of(model)
    (share,) = whole.devices
    assert share.n_layers == N_LAYERS
    assert whole.kv_bytes == 0
    smaller = plan_of(model, gpu_memory=share.total_bytes - 1, kv_dtype="f16")
    (part,) = smaller.devices
    assert part.n_layers == N_LAYERS - 1
    assert smaller.weight_bytes > whole.weight_bytes
    assert whole.all_on_gpu_bytes is None
    assert smaller.all_on_gpu_bytes == share.total_bytes
    assert "The CPU has the first layers; all of them would take " in smaller.message
    assert smaller.kv_bytes == part.kv_bytes // part.n_layers
    message = f"gpu_layers is {N_LAYERS}: they do not fit; there is room for {N_LAYERS - 1} "
    with pytest.raises(InsufficientMemoryError, match=message):
        plan_of(model, gpu_layers=N_LAYERS, gpu_memory=share.total_bytes - 1, kv_dtype="f16")
    none = plan_of(model, gpu_memory=1000, kv_dtype="f16")
    assert none.devices == ()
    assert none.all_on_gpu_bytes == share.total_bytes


def test_int8_cache_where_it_saves_a_layer(model: Path) -> None:
    f16 = plan_of(model, kv_dtype="f16").devices[0]
    assert plan_of(model).kv_dtype == "f16"
    assert plan_of(model, gpu_memory=f16.total_bytes - 1).kv_dtype == "int8"


FAILING = [
    "open", "allocate", "copy_in", "copy_out", "place_matrix", "begin", "record", "finish", "embed",
    "qkv", "attend", "project", "gate_up", "down", "output", "select", "stream_matrix",
    "stream_bytes",
]  # fmt: skip


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("call", [1, 3])
def test_a_call_that_fails(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    """An error that names it; nothing is lost, and afterwards the same engine works."""
    expected = logits(model, 20, device="cpu")
    error = InsufficientMemoryError if name == "allocate" else DeviceError
    if name in ("open", "allocate", "copy_in", "place_matrix"):
        monkeypatch.setenv("LLAMA2Q_STAND_IN_FAIL", name)
        with pytest.raises(error):
            llama2q.load(model, n_ctx=64, device="cuda")
        return
    options: dict[str, Any] = {}
    if name.startswith("stream"):
        options = {"gpu_layers": 2, "stream_prefill": 20}
    with llama2q.load(model, n_ctx=64, device="cuda", **options) as llm:
        ids = (llm.tokenizer.encode(PROMPT) * 20)[:20]
        for _ in range(call - 1):
            assert llm.logits(ids).tobytes() == expected.tobytes()
        monkeypatch.setenv("LLAMA2Q_STAND_IN_FAIL", name)
        fails = llm.generate if name in ("record", "select") else llm.logits
        with pytest.raises(error, match="the stand-in was told to fail"):
            fails(ids, **({"temperature": 0} if name == "select" else {}))
        monkeypatch.delenv("LLAMA2Q_STAND_IN_FAIL")
        assert llm.logits(ids).tobytes() == expected.tobytes()


def test_devices_that_are_not_there(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="there are 1 GPUs"):
        llama2q.load(model, device="cuda:1")
    with pytest.raises(InvalidArgumentError, match="expected auto, cpu, cuda or cuda:N"):
        llama2q.load(model, device="gpu")
    with pytest.raises(InvalidArgumentError, match="gpu_layers is -1"):
        llama2q.load(model, gpu_layers=-1)
    with pytest.raises(InvalidArgumentError, match="gpu_memory is 0"):
        llama2q.load(model, gpu_memory=0)
    monkeypatch.setenv("LLAMA2Q_STAND_IN_DEVICES", "0")
    with pytest.raises(DeviceError, match="finds no GPU"):
        llama2q.load(model, device="cuda")
    with llama2q.load(model, n_ctx=64) as llm:
        assert llm.engine.plan.devices == ()


def test_pages_of_a_device_s_layers_are_released(model: Path) -> None:
    """The file is mapped, but none of it stays in memory."""

    def resident(path: Path) -> int:
        total, inside = 0, False
        for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
            if "-" in line.split(" ", 1)[0]:
                inside = line.endswith(str(path.resolve()))
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
        return total

    with llama2q.load(model, n_ctx=64, device="cuda") as llm:
        assert resident(model) < 200_000
        llm.generate(PROMPT, max_tokens=3)
        assert resident(model) < 200_000


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    from llama2q.doctor import _cuda

    assert _cuda().startswith("stand-in 0, compute capability 9.0, 1.0 GiB free of 1.0 GiB")
    monkeypatch.setenv("LLAMA2Q_STAND_IN_DEVICES", "0")
    assert "finds no GPU" in _cuda()
