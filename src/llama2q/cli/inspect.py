"""What `llama2q inspect` tells of a file."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

from llama2q.cli.console import gigabytes
from llama2q.format.reader import L2qFile


def describe(file: L2qFile, *, tensors: bool = False, licences: bool = False) -> dict[str, Any]:
    """Collect what the header says.

    Parameters
    ----------
    file : L2qFile
    tensors : bool
        List every tensor too.
    licences : bool
        Add the whole licence texts.
    """
    texts = dict(sorted(file.metadata.licences.items()))
    recipe = file.recipe
    matrices = [file.matrix(name) for name in recipe.tensors]
    n_weights = sum(matrix.n_weights for matrix in matrices)
    matrix_bytes = sum(tensor.nbytes for matrix in matrices for tensor in matrix.tensors())
    types = Counter(map(str, recipe.tensors.values()))
    description: dict[str, Any] = {
        "path": str(file.path),
        "bytes": file.file_bytes,
        "model_id": file.model_id,
        "template": file.template,
        "config": file.config.to_dict(),
        "rope": file.metadata.rope.to_dict(),
        "quant": recipe.quant,
        "method": recipe.method,
        "calibration": recipe.calibration,
        "group_size": recipe.group_size,
        "grid": recipe.grid,
        "matrix_types": dict(types),
        "weights": n_weights,
        "bits_per_weight": round(8 * matrix_bytes / n_weights, 4),
        "licences": {name: _first_line(text) for name, text in texts.items()},
        "attribution": file.metadata.attribution,
        "source": [entry.to_dict() for entry in file.metadata.source],
    }
    if licences:
        description["licence_texts"] = texts
    if tensors:
        description["tensors"] = [
            {
                "name": info.name,
                "dtype": info.dtype,
                "shape": list(info.shape),
                "offset": info.offset,
                "bytes": info.nbytes,
            }
            for info in file.tensors.values()
        ]
    return description


def _scaling(rope: dict[str, Any]) -> str:
    if rope["scaling"] == "none":
        return ""
    return f", rope scaling {rope['scaling']} {rope['factor']:g} of {rope['original_max_seq_len']}"


def _first_line(text: str) -> str:
    """Return the first line that says something, without control characters."""
    lines = (printable(line).strip() for line in text.splitlines())
    return next((line for line in lines if line), "")[:100]


def printable(text: str) -> str:
    """Leave out what could steer a terminal: control characters but for newline and tab."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf"))


def print_licences(values: dict[str, Any]) -> None:
    """Print the licence texts of `describe(..., licences=True)`."""
    if not values["licence_texts"]:
        print("The file holds no licence texts: none was found beside the checkpoint.")
    for name, text in values["licence_texts"].items():
        print(f"==> {name} <==\n{printable(text).strip()}\n")
    if values["attribution"]:
        print(values["attribution"])


def print_description(values: dict[str, Any]) -> None:
    """Print `describe`'s result for people."""
    config = values["config"]
    types = ", ".join(f"{count} x {name}" for name, count in values["matrix_types"].items())
    rows = [
        ("file", f"{values['path']} ({gigabytes(values['bytes'])})"),
        ("model id", values["model_id"]),
        ("weights", f"{values['weights']:,} at {values['bits_per_weight']:.2f} bits"),
        ("quantization", f"{values['quant']}, {values['method']}: {types}"),
        ("layers", f"{config['n_layers']}, dim {config['dim']}, hidden {config['hidden_dim']}"),
        ("heads", f"{config['n_heads']}, KV heads {config['n_kv_heads']}"),
        ("vocabulary", config["vocab_size"]),
        ("context", f"{config['max_seq_len']} tokens{_scaling(values['rope'])}"),
        ("template", values["template"]),
        ("source", ", ".join(entry["name"] for entry in values["source"]) or "not recorded"),
    ]
    named = [f"{name}: {line}" for name, line in values["licences"].items()]
    rows += [("licences", named[0] if named else "none found beside the checkpoint")]
    rows += [("", line) for line in named[1:]]
    if values["attribution"]:
        rows.append(("", values["attribution"]))
    for name, value in rows:
        print(f"{name:<13} {value}")
    for tensor in values.get("tensors", []):
        shape = "x".join(map(str, tensor["shape"]))
        print(f"{tensor['name']:<48} {tensor['dtype']:<5} {shape:<18} at {tensor['offset']}")
