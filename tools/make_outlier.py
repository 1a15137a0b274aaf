"""Rescale a checkpoint so that a few channels are 100 to 1000 times larger, its function the same.

    python3 tools/make_outlier.py tests/data/mini mini-outlier

In every layer a few channels (drawn by a hash; 4 at each of four places) grow by a power of two,
2^7 to 2^10, and what reads them shrinks by it:

- attention_norm's elements; the columns of wq, wk and wv;
- ffn_norm's elements; the columns of w1 and w3;
- rows of w3; the columns of w2;
- rows of wv; the columns of wo, for all query heads of that KV head.

A product of a grown factor and a shrunk one has the same bits as before, and so has every sum of
such products: an unquantized model computes the same logits bit for bit. A quantizer meets what it
fears: activations of which one is hundreds of times larger than those it shares a scale with, and
columns of weights hundreds of times smaller than their neighbours, which matter as much as those.

How that compares with the real Llama 2: two channels of 4096 (1415 and 2533 in the 7B) are a
thousand times larger than the others in the residual stream, at the first token and the first full
stop or newline (Sun et al., "Massive Activations in Large Language Models", 2024), and single
tokens have such values in the input of w2 (Lin et al., "DuQuant", 2024). So real ones are fewer and
belong to few tokens; here they are there at every token, in the inputs of all matrices of the
layers. The residual stream itself cannot be rescaled: RMSNorm takes its mean over all channels.
Real columns behind large channels need not be small; here they are, since nothing else leaves the
function as it is. It is therefore a harder case than the real one, with a known cure: undoing it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2q.config import ModelConfig
from llama2q.converter.checkpoint import MetaCheckpoint
from llama2q.converter.shards import split
from llama2q.errors import InvalidArgumentError, Llama2qError
from llama2q.quant.bits import widen

N_CHANNELS = 4
EXPONENTS = (7, 8, 9, 10)

Exponents = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a layer where channels grow.

    Attributes
    ----------
    grows : str
        The tensor, within the layer, whose rows (or elements) are multiplied.
    shrink : tuple of str
        The matrices whose columns are divided.
    """

    grows: str
    shrink: tuple[str, ...]

    def n_channels(self, config: ModelConfig) -> int:
        """How many channels there are to choose from."""
        sizes = {"attention.wv": config.kv_dim, "feed_forward.w3": config.hidden_dim}
        return sizes.get(self.grows, config.dim)

    def columns(self, config: ModelConfig, rows: Exponents) -> Exponents:
        """Exponents of the columns that read these channels."""
        if self.grows != "attention.wv":
            return rows
        heads = rows.reshape(config.n_kv_heads, 1, config.head_dim)
        return np.repeat(heads, config.n_heads // config.n_kv_heads, axis=1).reshape(-1)


SITES = (
    Site("attention_norm", ("attention.wq", "attention.wk", "attention.wv")),
    Site("ffn_norm", ("feed_forward.w1", "feed_forward.w3")),
    Site("feed_forward.w3", ("feed_forward.w2",)),
    Site("attention.wv", ("attention.wo",)),
)


class OutlierCheckpoint(MetaCheckpoint):
    """A checkpoint whose tensors are read rescaled."""

    def read(self, name: str) -> NDArray[Any]:
        """Return a tensor, as `MetaCheckpoint.read` does, with its channels rescaled.

        Raises
        ------
        InvalidArgumentError
            A value leaves the range of the dtype, so that the function would change.
        """
        original = super().read(name)
        shift = shift_of(self.config, name)
        return original if shift is None else rescale(original, shift, name)


def shift_of(config: ModelConfig, name: str) -> Exponents | None:
    """Return by how many powers of two each value of a tensor grows.

    Parameters
    ----------
    config : ModelConfig
    name : str
        Meta's name.

    Returns
    -------
    int32, (rows, 1), (1, cols), (rows, cols) or, for a norm, (dim,); None
        None where the tensor stays as it is.
    """
    if not name.startswith("layers."):
        return None
    _, layer, place = name.removesuffix(".weight").split(".", 2)
    shift: Exponents | None = None
    for site in SITES:
        if place == site.grows or place in site.shrink:
            rows = _drawn(f"{layer}.{site.grows}", site.n_channels(config))
            if place == site.grows:
                part = rows if place.endswith("norm") else rows[:, None]
            else:
                part = -site.columns(config, rows)[None, :]
            shift = part if shift is None else shift + part
    return shift


def _drawn(seed: str, n: int) -> Exponents:
    """Draw the exponents of n channels, most of them 0, the same on any machine."""
    digests = [hashlib.sha256(f"{seed}.{channel}".encode()).digest() for channel in range(n)]
    exponents = np.zeros(n, np.int32)
    for channel in sorted(range(n), key=digests.__getitem__)[:N_CHANNELS]:
        exponents[channel] = EXPONENTS[digests[channel][-1] % len(EXPONENTS)]
    return exponents


def rescale(values: NDArray[Any], shift: Exponents, name: str) -> NDArray[Any]:
    """Multiply by powers of two, exactly.

    Parameters
    ----------
    values : float32, float16 or uint16 (bfloat16)
    shift : int32, broadcast to the values' shape
    name : str
        For the message.

    Raises
    ------
    InvalidArgumentError
        A product is not a number of that format.
    """
    original = widen(values)
    with np.errstate(over="ignore"):
        wide = np.ldexp(original, shift)
        if values.dtype == np.uint16:
            result = (wide.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        else:
            result = wide.astype(values.dtype)
    if not np.array_equal(np.ldexp(widen(result), -shift), original):
        raise InvalidArgumentError(
            f"{name} has values that {values.dtype} does not hold after multiplication by "
            f"2^{shift.min()} to 2^{shift.max()}: take a checkpoint in bf16 or f32"
        )
    return result


def outliers(config: ModelConfig) -> Iterator[tuple[str, dict[int, int]]]:
    """List all grown channels: the name of the tensor that grows, channel -> factor."""
    for layer in range(config.n_layers):
        for site in SITES:
            drawn = _drawn(f"{layer}.{site.grows}", site.n_channels(config))
            factors = {int(channel): 1 << int(drawn[channel]) for channel in np.flatnonzero(drawn)}
            yield f"layers.{layer}.{site.grows}.weight", factors


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="a checkpoint in Meta's form")
    parser.add_argument("target", type=Path, metavar="DST", help="the folder to write")
    chosen = parser.parse_args(arguments)
    try:
        with OutlierCheckpoint.open(chosen.source) as checkpoint:
            chosen.target.mkdir(parents=True, exist_ok=True)
            split(checkpoint, chosen.target, checkpoint.n_shards)
            for name, factors in outliers(checkpoint.config):
                print(f"{name}: {', '.join(f'{c} x{f}' for c, f in factors.items())}")
    except (Llama2qError, OSError) as error:
        print(f"make_outlier: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
