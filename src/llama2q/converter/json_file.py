"""The small JSON files of a checkpoint, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llama2q.converter.foreign import describe_foreign
from llama2q.errors import Llama2qError

MAX_JSON_BYTES = 1 << 20


def read_json_object(
    path: Path,
    error: type[Llama2qError],
    max_bytes: int = MAX_JSON_BYTES,
    *,
    hub: bool = False,
) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Parameters
    ----------
    path : Path
    error : class
        What to raise: the file is too large, is a web page or no JSON, names a key twice in one
        object, or holds something else than an object.
    max_bytes : int
    hub : bool
        Whether the file comes from Hugging Face's hub, for messages.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    foreign = describe_foreign(path.name, data[:512], hub=hub)
    if foreign is not None:
        raise error(foreign)
    if len(data) > max_bytes:
        raise error(f"{path.name} has over {max_bytes} bytes; expected a small file")
    return parse_json_object(data, path.name, error)


def parse_json_object(data: bytes, what: str, error: type[Llama2qError]) -> dict[str, Any]:
    """Parse the bytes of one JSON object; `what` names it in messages."""
    try:
        values = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as fault:
        raise error(f"{what} is not valid JSON: {fault}") from fault
    if not isinstance(values, dict):
        raise error(f"{what} holds a {type(values).__name__}; expected an object")
    return values


def shown(value: object, most: int = 80) -> str:
    """Write a value from a file for a message: ASCII, cut to `most` characters."""
    text = ascii(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key appears twice")
    return values


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")
