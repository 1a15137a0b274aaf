"""Conversions that run a text through the model: what they gain, and that they can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama2q
from llama2q.calibrate import calibration
from llama2q.calibrate.calibration import Calibration
from llama2q.errors import CalibrationTextError, InvalidArgumentError
from llama2q.format import L2qFile

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 60
UNSEEN = """\
The lighthouse keeper had not spoken to anyone for eleven days when the supply boat came round the
point. He stood at the end of the jetty with his hands in his pockets and watched two men throw a
rope. They had brought flour, lamp oil, a sack of potatoes and a letter from his sister, who wrote
that the winter had been mild in the south and that the children asked when he would come home. He
read it twice by the window. Then he trimmed the wick, wound the clockwork that turned the lamp, and
wrote in the log that the wind had gone to the north and that nothing else had happened.
"""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrate with few tokens."""
    monkeypatch.setattr(calibration, "N_TOKENS", 1536)


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def logits(path: Path, ids: list[int]) -> Any:
    with llama2q.load(path, n_ctx=512) as llm:
        return llm.logits(ids)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("method", ["gptq", "calibrated"])
def test_same_bytes_for_any_number_of_threads(
    mini_checkpoint: Path, tmp_path: Path, method: str
) -> None:
    files = []
    for n_threads in (1, 3):
        path = tmp_path / f"{n_threads}.l2q"
        report = llama2q.convert(mini_checkpoint, path, method=method, n_threads=n_threads)
        assert report.recipe.method == method
        files.append(path.read_bytes())
    assert files[0] == files[1]
    with L2qFile(path) as file:
        file.verify()
        assert file.recipe.calibration.startswith("1536 tokens of a text with SHA-256 ")


def test_each_method_gains(
    mini_checkpoint: Path,
    convert_mini: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mean squared error of the logits on a text that none of them has seen."""
    monkeypatch.setattr(calibration, "N_TOKENS", 6144)
    tokenizer = llama2q.Tokenizer.from_file(mini_checkpoint / "tokenizer.model")
    ids = tokenizer.encode(UNSEEN)
    exact = logits(convert_mini(quant="none"), ids)
    losses = {}
    for method in ("rtn", "search", "calibrated", "gptq"):
        path = tmp_path / f"{method}.l2q"
        llama2q.convert(mini_checkpoint, path, method=method)
        losses[method] = float(np.square(logits(path, ids) - exact).mean())
    assert losses["search"] < 0.97 * losses["rtn"]
    assert losses["calibrated"] < 0.97 * losses["rtn"]
    assert losses["gptq"] < 0.9 * min(losses["search"], losses["calibrated"])


@pytest.mark.usefixtures("short")
def test_a_text_of_ones_own(mini_checkpoint: Path, tmp_path: Path, prose: Path) -> None:
    """Changes the codes and the metadata; where it lies does not."""
    other = tmp_path / "other.txt"
    other.write_bytes(prose.read_bytes())
    ids = []
    for number, text in enumerate((None, prose, other)):
        report = llama2q.convert(
            mini_checkpoint, tmp_path / f"{number}.l2q", method="calibrated", calibration_text=text
        )
        ids.append(report.model_id)
        assert bool(report.notes) == (text is not None)  # of 1024 tokens
    assert ids[0] != ids[1] == ids[2]


def test_a_text_that_is_short(mini_checkpoint: Path, tmp_path: Path, prose: Path) -> None:
    """Both the plan and the report say so."""
    arguments: dict[str, Any] = {"method": "calibrated", "calibration_text": prose}
    plan = llama2q.plan_conversion(mini_checkpoint, tmp_path / "x.l2q", **arguments)
    report = llama2q.convert(mini_checkpoint, tmp_path / "x.l2q", **arguments)
    assert plan.notes == report.notes
    assert "tokens in whole windows of 512; with fewer than 10240" in report.notes[0]


@pytest.mark.usefixtures("short")
def test_going_on(mini_checkpoint: Path, tmp_path: Path) -> None:
    """Between layers and within one: the bytes of a run that was not interrupted."""
    whole, path = tmp_path / "whole.l2q", tmp_path / "x.l2q"
    llama2q.convert(mini_checkpoint, whole)
    for stop_at in ("layers.1.attention.wk.weight", "layers.3.attention_norm.weight",
                    "layers.4.feed_forward.w2.weight", "output.weight"):  # fmt: skip

        def stop(done: int, total: int, name: str, last: str = stop_at) -> None:
            if name == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            llama2q.convert(mini_checkpoint, path, progress=stop)
    llama2q.convert(mini_checkpoint, path)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"method": "awq"}, InvalidArgumentError, "method is 'awq'; expected one of gptq, cali"),
        ({"quant": "int8", "method": "gptq"}, InvalidArgumentError, "which chooses codes of int4"),
        ({"quant": "none", "method": "rtn"}, InvalidArgumentError, "with quant='none' leave it"),
        ({"method": "search", "calibration_text": "x"}, InvalidArgumentError, "is of no use to"),
        ({"calibration_text": "absent.txt"}, CalibrationTextError, "absent.txt cannot be read"),
    ],
)
def test_arguments_that_are_refused(
    mini_checkpoint: Path, tmp_path: Path, arguments: dict[str, Any],
    error: type[Exception], match: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=match):
        llama2q.convert(mini_checkpoint, tmp_path / "x.l2q", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_texts_that_are_refused(mini_checkpoint: Path, tmp_path: Path) -> None:
    data = (mini_checkpoint / "tokenizer.model").read_bytes()
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc \xff")
    with pytest.raises(CalibrationTextError, match="is not UTF-8 at byte 4"):
        Calibration.of(data, path)
    path.write_text("too short")
    with pytest.raises(CalibrationTextError, match="expected at least 511, one window"):
        Calibration.of(data, path)
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(CalibrationTextError, match="has 68157440 bytes"):
        Calibration.of(data, path)


@pytest.mark.slow
@pytest.mark.parametrize(("group_size", "most"), [(32, 0.0095), (64, 0.0120), (128, 0.0145)])
def test_quality(
    mini_checkpoint: Path,
    convert_mini: Callable[..., Path],
    shared_dir: Path,
    tmp_path: Path,
    group_size: int,
    most: float,
) -> None:
    """The demo model's mean KL divergence (docs/quality.md) does not creep up."""
    from wikitext import as_prose

    text = as_prose((shared_dir / "text" / "wikitext-2-test.txt").read_text(encoding="utf-8"))
    report = llama2q.convert(mini_checkpoint, tmp_path / "x.l2q", group_size=group_size)
    result = llama2q.compare(convert_mini(quant="none"), report.path, text, n_tokens=15_300)
    assert result.kl_mean.value <= most
