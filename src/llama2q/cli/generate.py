"""The command `llama2q generate`."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama2q.cli.console import exit_codes, note, print_json
from llama2q.cli.loading import DEFAULTS, LoadOptions, takes_load_options
from llama2q.cli.options import Json, ModelFile
from llama2q.errors import InvalidArgumentError
from llama2q.files import private_file

if TYPE_CHECKING:
    from llama2q import Completion, Llama, SamplingParams


@takes_load_options
def generate(
    file: ModelFile,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue; - is stdin.")],
    max_tokens: Annotated[
        int | None, typer.Option(help="Stop after this many tokens; if not given, at the end.")
    ] = None,
    min_tokens: Annotated[int, typer.Option(help="Do not end before so many tokens.")] = 0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is off.")] = 0.9,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    min_p: Annotated[float, typer.Option(help="0 is off.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: against tokens of prompt and output; 1 is off.")
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Against tokens of the output, -2 to 2; 0 is off.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="The same, as often as they are there; 0 is off.")
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=X", help="Add X to a token's logit; -inf bans it; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text; repeatable.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end of the text.")
    ] = False,
    n: Annotated[int, typer.Option("--n", help="Samples, printed one after another.")] = 1,
    echo: Annotated[bool, typer.Option("--echo", help="Print the prompt too.")] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: log-probabilities of the K likeliest.", metavar="K"),
    ] = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write what `llama2q replay` proves the tokens from; mode 0600.",
        ),
    ] = None,
    loading: LoadOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Continue PROMPT: new text to stdout as it comes, speed to stderr."""
    with exit_codes():
        import llama2q

        if prompt == "-":
            prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
        if logprobs is not None and not json:
            raise InvalidArgumentError("--logprobs is shown in JSON only; add --json")
        if receipt is not None and n > 1:
            raise InvalidArgumentError("--receipt is of one sample; with --n take those of --json")
        params = llama2q.SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=dict(map(_bias, logit_bias or ())),
            seed=seed,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop=stop or (),
            ignore_eos=ignore_eos,
            n=n,
            echo=echo,
            logprobs=logprobs,
        )
        with loading.load(file) as llm:
            if json or n > 1:
                completion = llm.generate(prompt, params)
            else:
                completion = _stream(llm, prompt, params)
            kv_dtype = llm.engine.kv_dtype
        if json:
            print_json(_values(completion))
        elif n > 1:
            for sample in completion.samples:
                print(f"--- {sample.index}\n{sample.prompt or ''}{sample.text}")
        if receipt is not None and completion.receipt is not None:
            with private_file(receipt) as opened:
                opened.write(completion.receipt.to_json().encode("ascii") + b"\n")
        for sample in completion.samples:
            _note(sample, kv_dtype)


def _stream(llm: Llama, prompt: str, params: SamplingParams) -> Completion:
    """Print the text as it comes."""
    with llm.stream(prompt, params) as stream:
        for chunk in stream:
            print(chunk.text, end="", flush=True)
    print()
    return stream.completion


def _values(completion: Completion) -> dict[str, Any]:
    """Return what JSON can hold."""
    receipt = completion.receipt
    return {
        **asdict(replace(completion, others=(), receipt=None)),
        "others": [_values(other) for other in completion.others],
        "receipt": None if receipt is None else receipt.to_dict(),
    }


def _note(completion: Completion, kv_dtype: str) -> None:
    usage, timings = completion.usage, completion.timings
    note(
        f"prompt {usage.prompt_tokens} tokens, {timings.prompt_tokens_per_second:.1f} tok/s; "
        f"new {usage.completion_tokens} tokens, {timings.tokens_per_second:.1f} tok/s; "
        f"KV {kv_dtype}; seed {completion.seed}; ended by {completion.finish_reason}"
    )


def _bias(text: str) -> tuple[int, float]:
    """Read one `ID=X`."""
    token, equals, bias = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return int(token), float(bias)
    except ValueError:
        raise InvalidArgumentError(
            f"--logit-bias is {text!r}; expected ID=X, a token id and a number, as 29871=-2.5"
        ) from None
