"""The `__metadata__` of a `.l2q` file: typed fields and their strings."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from llama2q.config import ModelConfig
from llama2q.errors import (
    HeaderError,
    InvalidArgumentError,
    NotAnL2qFileError,
    UnsupportedVersionError,
)
from llama2q.format.header import HASH_PLACEHOLDER, canonical_json, parse_json
from llama2q.format.recipe import Recipe
from llama2q.rope_scaling import RopeScaling

FORMAT = "l2q"
FORMAT_VERSION = "1"
TEMPLATES = ("base", "llama2-chat", "vicuna", "zephyr", "chatml")
ATTRIBUTION = (
    "Llama 2 is licensed under the LLAMA 2 Community License, "
    "Copyright (c) Meta Platforms, Inc. All Rights Reserved."
)
_REQUIRED = {
    "format",
    "format_version",
    "model_id",
    "config",
    "rope",
    "recipe",
    "template",
    "licences",
    "source",
    "sha256",
}
_OPTIONAL = {"attribution"}
_HEX = frozenset(string.digits + "abcdef")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that the weights came from.

    Attributes
    ----------
    name : str
        File name without folders.
    bytes : int
        Its size.
    sha256 : str
        64 hex digits of its content; zeros while it is not known yet.
    """

    name: str
    bytes: int
    sha256: str = HASH_PLACEHOLDER

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dict, for JSON."""
        return {"name": self.name, "sha256": self.sha256, "bytes": self.bytes}


@dataclass(frozen=True, slots=True)
class Metadata:
    """Everything that a file says about itself besides the places of its tensors.

    Attributes
    ----------
    config : ModelConfig
    recipe : Recipe
    template : {"base", "llama2-chat", "vicuna", "zephyr", "chatml"}
        How chat prompts are built; "base" has none.
    licences : mapping of str to str
        Licence texts found beside the checkpoint, by file name.
    source : tuple of SourceFile
    sha256 : mapping of str to str
        Hash of every tensor's bytes, pads left out.
    model_id : str
        64 hex digits.
    rope : RopeScaling
        The model's own.
    """

    config: ModelConfig
    recipe: Recipe
    template: str = "base"
    licences: Mapping[str, str] = field(default_factory=dict)
    source: tuple[SourceFile, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict)
    model_id: str = HASH_PLACEHOLDER
    rope: RopeScaling = field(default_factory=RopeScaling)

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        self.recipe.check(self.config)
        self.rope.check(self.config)
        if self.template not in TEMPLATES:
            raise InvalidArgumentError(
                f"template is {self.template!r}; expected one of {', '.join(TEMPLATES)}"
            )

    @property
    def attribution(self) -> str | None:
        """Meta's attribution line where a licence of Llama 2 is among the licences."""
        held = any("llama 2 community license" in text.lower() for text in self.licences.values())
        return ATTRIBUTION if held else None

    def with_hashes(self, source: tuple[SourceFile, ...], sha256: Mapping[str, str]) -> Metadata:
        """Return a copy with other hashes."""
        return replace(self, source=source, sha256=sha256)

    def to_strings(self) -> dict[str, str]:
        """Return the values of `__metadata__`."""
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model_id": self.model_id,
            "config": canonical_json(self.config.to_dict()),
            "rope": canonical_json(self.rope.to_dict()),
            "recipe": canonical_json(self.recipe.to_dict()),
            "template": self.template,
            "licences": canonical_json(dict(self.licences)),
            "source": canonical_json([entry.to_dict() for entry in self.source]),
            "sha256": canonical_json(dict(self.sha256)),
        }
        if self.attribution is not None:
            values["attribution"] = self.attribution
        return values

    @classmethod
    def from_strings(cls, values: Mapping[str, str]) -> Self:
        """Parse the values of `__metadata__`, whose keys `check_identity` has accepted.

        Raises
        ------
        HeaderError
            A value has another form.
        """
        config = _rebuild("config", ModelConfig.from_dict, _object(values, "config"))
        recipe = _rebuild("recipe", Recipe.from_dict, _object(values, "recipe"))
        rope = _rebuild("rope", RopeScaling.from_dict, _object(values, "rope"))
        parsed: Self = _rebuild(
            "the metadata",
            lambda fields: cls(**fields),
            {
                "config": config,
                "recipe": recipe,
                "template": values["template"],
                "licences": _strings(values, "licences"),
                "source": _sources(values["source"]),
                "sha256": _strings(values, "sha256"),
                "model_id": values["model_id"],
                "rope": rope,
            },
        )
        for name, digits in parsed.sha256.items():
            require_hash(digits, f"sha256 of {name}")
        if values.get("attribution") != parsed.attribution:
            raise HeaderError(
                f"attribution is {values.get('attribution')!r}; expected {parsed.attribution!r} "
                "with these licences"
            )
        return parsed


def check_identity(values: Mapping[str, str]) -> None:
    """Raise unless `__metadata__` is that of a `.l2q` file of this version.

    Raises
    ------
    NotAnL2qFileError
        It does not say format l2q.
    UnsupportedVersionError
        It says another version.
    HeaderError
        Its key set is not exact.
    """
    if values.get("format") != FORMAT:
        raise NotAnL2qFileError(
            "this is a safetensors file but not a .l2q model: make one with llama2q-convert "
            "from the checkpoint"
        )
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"the file has format version {version}; this llama2q reads {FORMAT_VERSION}: "
            "update llama2q or convert again"
        )
    missing, extra = _REQUIRED - set(values), set(values) - _REQUIRED - _OPTIONAL
    if missing or extra:
        raise HeaderError(f"metadata: missing keys {sorted(missing)}, unknown {sorted(extra)}")
    require_hash(values["model_id"], "model_id")


def require_hash(value: Any, what: str) -> None:
    """Raise HeaderError unless `value` is 64 lower-case hex digits."""
    if not isinstance(value, str) or len(value) != 64 or not _HEX.issuperset(value):
        raise HeaderError(f"{what} is {value!r}; expected 64 hex digits")


def _rebuild(what: str, build: Any, fields: Any) -> Any:
    try:
        return build(fields)
    except InvalidArgumentError as error:
        raise HeaderError(f"{what}: {error}") from error


def _object(values: Mapping[str, str], name: str) -> dict[str, Any]:
    parsed = parse_json(values[name], name)
    if not isinstance(parsed, dict):
        raise HeaderError(f"{name} is not a JSON object")
    return parsed


def _strings(values: Mapping[str, str], name: str) -> dict[str, str]:
    parsed = _object(values, name)
    if not all(isinstance(value, str) for value in parsed.values()):
        raise HeaderError(f"{name} is not an object of strings")
    return parsed


def _sources(text: str) -> tuple[SourceFile, ...]:
    parsed = parse_json(text, "source")
    if not isinstance(parsed, list):
        raise HeaderError("source is not a list")
    files = []
    for entry in parsed:
        if not isinstance(entry, dict) or set(entry) != {"name", "sha256", "bytes"}:
            raise HeaderError("an entry of source has not exactly the keys name, sha256, bytes")
        if not isinstance(entry["name"], str) or type(entry["bytes"]) is not int:
            raise HeaderError(f"an entry of source is malformed: {entry!r}")
        require_hash(entry["sha256"], f"sha256 of source {entry['name']}")
        files.append(SourceFile(**entry))
    return tuple(files)
