"""The command `llama2q-convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama2q.cli.console import ProgressBar, exit_codes, gigabytes, note, print_json, set_up

if TYPE_CHECKING:
    from llama2q.converter.conversion_plan import ConversionPlan
    from llama2q.converter.gguf_encode import TensorReport

_PLAIN = ("F32", "F16", "BF16")
"""Types of a GGUF file whose weights were not rounded to codes."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Quant(StrEnum):
    """Recipes."""

    int4 = "int4"
    int8 = "int8"
    none = "none"


class Grid(StrEnum):
    """Grids of int4."""

    nonuniform = "nonuniform"
    uniform = "uniform"


class Method(StrEnum):
    """Ways to choose int4 codes."""

    gptq = "gptq"
    calibrated = "calibrated"
    search = "search"
    rtn = "rtn"


class ChatTemplate(StrEnum):
    """Ways to build chat prompts."""

    llama_2 = "llama-2"
    vicuna = "vicuna"
    zephyr = "zephyr"
    chatml = "chatml"
    none = "none"


@app.command()
def convert(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Meta's download, a Hugging Face folder of a Llama, or a GGUF file of one.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The .l2q file to write.")
    ] = None,
    quant: Annotated[
        Quant | None,
        typer.Option(
            help="none keeps the checkpoint's own numbers. [default: int4; what a quantized GGUF "
            "file has]"
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights per scale: 32, 64 or 128. [default: 64; 32 for such a file]"),
    ] = None,
    grid: Annotated[
        Grid | None,
        typer.Option(help="Values that an int4 code can take. [default: nonuniform]"),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="How int4 codes are chosen: best first, the slower the better. Default: gptq."
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Short for --method search.")] = False,
    calibration_text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text for gptq and calibrated in place of llama2q's."),
    ] = None,
    chat_template: Annotated[
        ChatTemplate | None,
        typer.Option(help="The template it was trained with; by default as its files or name say."),
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Merge this LoRA adapter (PEFT's form) into it first."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with an interrupted conversion.")
    ] = True,
    no_checksums: Annotated[
        bool,
        typer.Option(
            "--no-checksums", help="Do not compare files with the hashes listed for them."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only say what it gives and needs; exit code 1 if it does not fit."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr.")] = False,
) -> None:
    """Convert a Llama 2 checkpoint (Meta's form, Hugging Face's, GGUF) to one .l2q file."""
    set_up(verbose)
    with exit_codes():
        import llama2q

        arguments: dict[str, Any] = {
            "quant": None if quant is None else quant.value,
            "group_size": group_size,
            "grid": None if grid is None else grid.value,
            "method": _method(method, fast=fast),
            "calibration_text": calibration_text,
            "chat_template": None if chat_template is None else chat_template.value,
            "lora": lora,
            "overwrite": force,
            "resume": resume,
            "verify_checksums": not no_checksums,
        }
        plan = llama2q.plan_conversion(folder, output, **arguments)
        if dry_run:
            show_plan(plan, json=json)
            return
        if not plan.obstacles:
            note(str(plan))
        with ProgressBar("converting", "bytes") as bar:
            report = llama2q.convert(folder, output, **arguments, progress=bar)
        if json:
            values = asdict(report)
            values["path"] = str(report.path)
            values["config"] = report.config.to_dict()
            values["recipe"] = report.recipe.to_dict()
            print_json(values)
        else:
            print(report.path)
        note(
            f"{gigabytes(report.input_bytes)} -> {gigabytes(report.output_bytes)}, "
            f"{report.bits_per_weight:.2f} bits a weight, {report.seconds:.1f} s"
            + (f"; {report.n_checksums} checksums right" if report.n_checksums else "")
        )
        for text in (*report.notes, *describe_tensors(report.tensors)):
            note(text)
        if report.notes:
            note(f"chat template: {report.template}")
        if report.terms is not None:
            note(report.terms)


def _method(method: Method | None, *, fast: bool) -> str | None:
    if fast and method not in (None, Method.search):
        raise typer.BadParameter(f"--fast is --method search; it contradicts --method {method}")
    return Method.search.value if fast else None if method is None else method.value


def describe_tensors(tensors: Sequence[TensorReport]) -> list[str]:
    """Say how many tensors are exactly those of the source, and what rounding cost the others."""
    if not tensors:
        return []
    rounded: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        if not tensor.exact:
            rounded.setdefault(f"{tensor.source} -> {tensor.stored}", []).append(tensor)
    n_exact = sum(tensor.exact for tensor in tensors)
    lines = [f"{n_exact} of {len(tensors)} tensors are exactly those of the file"]
    for kinds, group in rounded.items():
        errors = [tensor.error for tensor in group if tensor.error is not None]
        size = f"{max(errors):.2%} of their size at most" if errors else "not measured"
        names = f"{group[0].name}, ..." if len(group) > 1 else group[0].name
        lines.append(f"rounded: {len(group)} {kinds}, error (RMS) {size} ({names})")
    if any(not tensor.exact and tensor.source not in _PLAIN for tensor in tensors):
        lines.append(
            "weights that were rounded before lose a little more each time: the best file comes "
            "from the original weights; --quant int8 keeps more"
        )
    return lines


def show_plan(plan: ConversionPlan, *, json: bool) -> None:
    """Print a plan; exit code 1 if it does not fit."""
    if json:
        print_json(plan.to_dict())
    else:
        print(f"{plan.path}: {plan}")
        for text in plan.notes:
            note(text)
    if not plan.fits:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()
