"""A checkpoint's own scaling of positions, on its way through the file to the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from converter.hf_files import hf_folder
from llama2q import _core
from llama2q.calibrate.layer import Layer
from llama2q.cli.inspect import describe, print_description
from llama2q.errors import ExportError, InvalidArgumentError
from llama2q.format import L2qFile
from llama2q.format.rope import attention_factor, inv_freq
from llama2q.rope_scaling import RopeScaling

SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.25},
    "dynamic": {"type": "dynamic", "factor": 2.0},
}


def scaling(kind: Any) -> RopeScaling:
    settings = SETTINGS[kind]
    return RopeScaling(
        scaling=kind,
        factor=settings["factor"],
        original_max_seq_len=4096,
        attention_factor=settings.get("attention_factor"),
    )


@pytest.fixture(scope="module", params=list(SETTINGS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, mini_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as Hugging Face would hold it, with scaled positions."""
    path = tmp_path_factory.mktemp(kind) / "mini"
    return hf_folder(path, mini_checkpoint, rope_scaling=SETTINGS[kind])


@pytest.fixture(scope="module")
def scaled(folder: Path) -> Path:
    path = folder.parent / "scaled.l2q"
    llama2q.convert(folder, path, method="rtn", chat_template="none")
    return path


def logits(path: Path, **options: Any) -> np.ndarray:
    with llama2q.load(path, kv_dtype="int8", **options) as llm:
        return llm.logits(llm.tokenizer.encode("Once upon a time there was a king. " * 12))


def test_the_file_says_it(kind: str, scaled: Path) -> None:
    with L2qFile(scaled) as file:
        assert file.metadata.rope == scaling(kind)
        assert file.config.max_seq_len == (4096 if kind == "dynamic" else 16384)
        expected = inv_freq(file.config.rope_theta, file.config.head_dim, scaling(kind))
        np.testing.assert_array_equal(file.array("rope.inv_freq"), expected)
        assert list(file.faults()) == []


def test_it_acts(kind: str, scaled: Path, mini_file: Path) -> None:
    """The same logits as those of the plain file, loaded with the same scaling."""
    own = logits(scaled)
    plain = logits(mini_file)
    if kind == "dynamic":
        np.testing.assert_array_equal(own, plain)
        asked = {"type": "ntk", "factor": 3.0}  # 2 * 8192 / 4096 - (2 - 1)
        ntk = logits(mini_file, n_ctx=8192, rope_scaling=asked)
        np.testing.assert_array_equal(logits(scaled, n_ctx=8192), ntk)
        with pytest.raises(InvalidArgumentError, match="8192 tokens at most"):
            llama2q.load(scaled, n_ctx=8193)
        return
    asked = {"type" if name == "rope_type" else name: x for name, x in SETTINGS[kind].items()}
    np.testing.assert_array_equal(own, logits(mini_file, rope_scaling=asked))
    np.testing.assert_array_equal(logits(scaled, rope_scaling="none"), plain)
    assert np.abs(own - plain).max() > 0.01


def test_receipts(kind: str, scaled: Path) -> None:
    n_ctx = 8192
    with llama2q.load(scaled, n_ctx=n_ctx, kv_dtype="int8") as llm:
        receipt = llm.generate("The king", seed=1, max_tokens=20).receipt
    assert receipt is not None
    assert receipt.rope == scaling(kind).fixed(n_ctx)
    assert llama2q.replay(receipt, scaled).proven


def test_inspect(kind: str, scaled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with L2qFile(scaled) as file:
        values = describe(file)
    assert values["rope"] == json.loads(json.dumps(scaling(kind).to_dict()))
    print_description(values)
    assert f"rope scaling {kind} {scaling(kind).factor:g} of 4096" in capsys.readouterr().out


def test_exports_refuse(kind: str, scaled: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"rope scaling '{kind}'"):
        llama2q.export_gguf(scaled, tmp_path / "model.gguf")
    with pytest.raises(ExportError, match=f"rope scaling '{kind}'"):
        llama2q.export_mlx(scaled, tmp_path / "mlx")
    assert list(tmp_path.iterdir()) == []


def test_calibration_rotates_alike(kind: str, scaled: Path) -> None:
    with L2qFile(scaled) as file:
        layer = Layer.of(file.config, 1, file.metadata.rope)
        assert layer.attention_factor == attention_factor(scaling(kind))
        np.testing.assert_array_equal(layer.inv_freq, file.array("rope.inv_freq"))
        x = np.ones((2, 1, file.config.head_dim), np.float32)
        positions = np.array([0, 3], np.int32)
        rotated = _core.rope(x, positions, layer.inv_freq, None, layer.attention_factor)
        np.testing.assert_array_equal(layer._rotate(x, positions), rotated)
