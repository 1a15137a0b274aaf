"""Measures what each way of quantizing costs on a checkpoint: bits against KL divergence.

Converts the checkpoint without quantization and with every recipe there is, one after the other,
and compares each with the former over a text (`llama2q.compare`). Prints a table; writes JSON and a
plot. The converted files are temporary and removed; the disk must hold the unquantized one, one
other and the logits of the tokens scored.

With `--peers` llama.cpp is given the same weights (`llama2q.export_gguf`); what its quantizer makes
runs in llama.cpp itself, with its own activations and a KV cache in f32, as the reference's, on the
same windows and against the same reference: our unquantized model.

    python3 tools/quality.py ~/llama/llama-2-7b --text wiki.test.raw
    python3 tools/quality.py ~/llama/llama-2-7b --text wiki.test.raw --peers
    python3 tools/quality.py ~/llama/llama-2-7b --text prose.txt --only "int4 64" --tokens 5000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import llama2q
import llama_cpp_peer
from llama2q import Comparison, Llama2qError
from llama2q.converter.forms import open_checkpoint
from llama2q.converter.mapped_tensor import NUMPY_DTYPES
from llama2q.errors import DiskSpaceError, InvalidArgumentError
from llama2q.evaluate.compare import Reference
from llama2q.evaluate.stored_logits import temp_folder
from llama2q.format.layout import place, tensor_specs
from llama2q.format.recipe import METHODS, Recipe
from llama_cpp_importances import Importances, calibration_windows, importances
from llama_cpp_peer import LlamaCpp, PeerFile, PeerType
from machine import describe_machine
from quality_report import QualityReport, QualityRow
from wikitext import as_prose

Kv = Literal["f32", "f16", "int8"]

_SAY_EVERY_SECONDS = 60.0
_HEADER_BYTES = 1 << 20
"""Room for a file's header and the folder around it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to convert, and how to run what comes out.

    Attributes
    ----------
    name : str
        What the table calls it.
    options : mapping
        Keywords of `llama2q.convert`.
    series : str
        Points of one series are joined in the plot; "" leaves it out.
    kv_dtypes : tuple
        Types of the KV cache, a row for each; None is the reference's own.
    """

    name: str
    options: Mapping[str, Any]
    series: str = ""
    kv_dtypes: tuple[Kv | None, ...] = (None,)


REFERENCE: Mapping[str, Any] = {"quant": "none"}
GROUPS = (32, 64, 128)
KV_OF = (64, "nonuniform", METHODS[0])
"""The int4 file that is run with every type of the KV cache: the converter's default."""


def _int4(grid: str, method: str) -> tuple[Variant, ...]:
    """All groups of one grid and method."""
    return tuple(
        Variant(
            f"int4 {n} {grid} {method}",
            {"quant": "int4", "group_size": n, "grid": grid, "method": method},
            f"int4 {grid} {method}",
            (None, "f16", "int8") if (n, grid, method) == KV_OF else (None,),
        )
        for n in GROUPS
    )


VARIANTS: tuple[Variant, ...] = (
    Variant("none", REFERENCE, kv_dtypes=("f16", "int8")),
    *(Variant(f"int8 {n}", {"quant": "int8", "group_size": n}, "int8") for n in GROUPS),
    *_int4("uniform", "rtn"),
    *_int4("uniform", "gptq"),
    *(variant for method in reversed(METHODS) for variant in _int4("nonuniform", method)),
)
"""What is measured: a new recipe or grid is a line here."""

PEER = "llama.cpp"
"""Series of its points, and what its names begin with."""


@dataclass(slots=True)
class Study:
    """A checkpoint, a text, and what was measured so far."""

    checkpoint: Path
    text: str
    folder: Path
    n_tokens: int
    protocol: Literal["llama.cpp", "gptq"]
    n_threads: int | None
    report: QualityReport
    with_importances: bool = False
    say: Callable[[str], None] = field(default=lambda text: None)

    def check_disk(self, variants: Sequence[Variant], peers: Sequence[PeerType]) -> None:
        """Refuse to start without room for the files that exist at one time, and for the logits.

        Raises
        ------
        DiskSpaceError
            Naming what is needed.
        """
        with open_checkpoint(self.checkpoint) as source:
            config, dtype = source.config, source.dtype
            tokenizer_bytes = len(source.tokenizer_bytes)

        def file_bytes(options: Mapping[str, Any]) -> int:
            known = {key: options[key] for key in ("quant", "group_size", "grid") if key in options}
            recipe = Recipe.for_model(config, **known, dtype=dtype)
            return place(tensor_specs(config, recipe, tokenizer_bytes))[-1].end + _HEADER_BYTES

        original = file_bytes(REFERENCE)
        others = [file_bytes(v.options) for v in variants if v.options != REFERENCE]
        if peers:  # the exported file, and one that llama.cpp makes of it
            widened = 4 // NUMPY_DTYPES[dtype].itemsize
            others.append(original * (1 + max(widened if p.is_f32 else 1 for p in peers)))
        window = 512 if self.protocol == "llama.cpp" else 2048
        n_tokens = min(self.n_tokens + window, len(self.text.encode()))
        # The logits get half of what is free then, see Reference.
        logits = 2 * 4 * config.vocab_size * n_tokens
        needs = {self.folder: original + max(others, default=0)}
        temp = temp_folder()
        if temp.stat().st_dev == self.folder.stat().st_dev:
            needs[self.folder] += logits
        else:
            needs[temp] = logits
        for folder, needed in needs.items():
            free = shutil.disk_usage(folder).free
            if free < needed:
                raise DiskSpaceError(
                    f"{needed / 1e9:.2f} GB are needed in {folder}; {free / 1e9:.2f} GB are free: "
                    "make room, take --work on another disk (TMPDIR for the logits), or fewer "
                    "--tokens"
                )

    def run(self, variants: Sequence[Variant], peers: Sequence[PeerType]) -> None:
        """Measure all variants; what is done stands in the report at any time."""
        original = self._convert("none", REFERENCE)
        with Reference(
            original,
            self.text,
            protocol=self.protocol,
            n_tokens=self.n_tokens,
            n_threads=self.n_threads,
            temp_bytes=sys.maxsize,
        ) as reference:
            for variant in variants:
                same = variant.options == REFERENCE
                path = original if same else self._convert(variant.name, variant.options)
                for kv_dtype in variant.kv_dtypes:
                    progress = self._progress(variant.name)
                    result = reference.compare(path, kv_dtype=kv_dtype, progress=progress)
                    self.report.rows.append(QualityRow(variant.name, variant.series, result))
                    self.say(_short(variant.name, result))
                if not same:
                    path.unlink()
            if peers:
                self._run_peers(reference, original, peers)

    def _run_peers(self, reference: Reference, original: Path, peers: Sequence[PeerType]) -> None:
        """Have llama.cpp quantize and run the same weights."""
        exported, path = (self.folder / name for name in ("exported.gguf", "peer.gguf"))
        llama2q.export_gguf(original, exported)
        runs: list[tuple[str, Importances | None, Sequence[PeerType]]] = [("", None, peers)]
        if self.with_importances:
            found = importances(exported, calibration_windows(original), self.n_threads)
            runs.append((" imatrix", found, [p for p in peers if p.takes_importances]))
        for suffix, weights, kinds in runs:
            for kind in kinds:
                name = f"{PEER} {kind.name}{suffix}"
                llama_cpp_peer.quantize(exported, path, kind, self.n_threads, weights)
                made = PeerFile.of(path)
                result = reference.compare_with(
                    made.model,
                    lambda: LlamaCpp(path, reference.window, self.n_threads),
                    progress=self._progress(name),
                )
                series = "" if kind.is_f32 else PEER + suffix
                self.report.rows.append(QualityRow(name, series, result, made.types))
                self.say(_short(name, result))
                path.unlink()

    def _progress(self, name: str) -> Callable[[int, int], None]:
        """Say once a minute how far a comparison is."""
        last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > _SAY_EVERY_SECONDS:
                last = time.monotonic()
                self.say(f"{name}: {done} of {total} windows")

        return show

    def _convert(self, name: str, options: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name.replace(' ', '-')}.l2q"
        done = llama2q.convert(
            self.checkpoint,
            path,
            n_threads=self.n_threads,
            verify_checksums=options == REFERENCE,  # once is enough
            **options,
        )
        self.say(f"{name}: {done.output_bytes / 1e6:.1f} MB converted in {done.seconds:.1f} s")
        return path


def _short(name: str, result: Comparison) -> str:
    kl = result.kl_mean
    error = f" +/- {kl.standard_error:.6f}" if kl.standard_error is not None else ""
    return f"{name}, KV {result.b.kv_dtype}: KL {kl.value:.6f}{error}, {result.seconds:.1f} s"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    chosen = parse_arguments(arguments)

    def is_chosen(name: str) -> bool:
        return not chosen.only or any(part in name for part in chosen.only)

    variants = [variant for variant in VARIANTS if is_chosen(variant.name)]
    peers = [p for p in llama_cpp_peer.TYPES if chosen.peers and is_chosen(f"{PEER} {p.name}")]
    try:
        if not variants and not peers:
            names = ", ".join(v.name for v in VARIANTS)
            raise InvalidArgumentError(f"--only {chosen.only} leaves nothing of: {names}")
        text = chosen.text.read_bytes().decode("utf-8", "replace")
        if chosen.prose:
            text = as_prose(text)
        report = QualityReport(
            machine=describe_machine(),
            checkpoint=chosen.checkpoint.resolve().name,
            text=chosen.text.name + (" as prose" if chosen.prose else ""),
            text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        if peers:
            report.machine[PEER] = llama_cpp_peer.version()
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=chosen.work or temp_folder()) as folder:
            study = Study(
                checkpoint=chosen.checkpoint.expanduser(),
                text=text,
                folder=Path(folder),
                n_tokens=chosen.tokens,
                protocol=chosen.protocol,
                n_threads=chosen.threads,
                report=report,
                with_importances=chosen.importances,
                say=say,
            )
            study.check_disk(variants, peers)
            try:
                study.run(variants, peers)
            except KeyboardInterrupt:
                say("interrupted: what is missing was not measured")
        report.seconds = time.monotonic() - started
    except (Llama2qError, OSError) as error:
        say(f"error: {error}")
        return 1
    print(report.table())
    if chosen.json:
        chosen.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if chosen.plot:
        say(report.plot(chosen.plot))
    if chosen.write:
        report.write_into(chosen.write)
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="DIR", help="a checkpoint, as llama2q-convert takes it"
    )
    parser.add_argument("--text", type=Path, required=True, help="what to measure on, UTF-8")
    parser.add_argument(
        "--prose", action="store_true", help="the text is WikiText's tokenized form: undo that"
    )
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens scored (20000)")
    parser.add_argument("--protocol", choices=["llama.cpp", "gptq"], default="llama.cpp")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help='parts of names: "int8,int4 64"'
    )
    packages = " ".join(llama_cpp_peer.PACKAGES)
    parser.add_argument(
        "--peers", action="store_true", help=f"llama.cpp, too (pip install {packages})"
    )
    parser.add_argument(
        "--importances",
        action="store_true",
        help="with --peers: llama.cpp once more, with an importance matrix of the\n"
        "text that llama2q calibrates with",
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, help="folder for the converted files")
    parser.add_argument("--json", type=Path, help="write all figures")
    parser.add_argument("--plot", type=Path, help="write a plot (needs matplotlib)")
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    chosen = parser.parse_args(arguments)
    if chosen.importances and not chosen.peers:
        parser.error("--importances needs --peers")
    for name in ("tokens", "threads"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; expected at least 1")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
