"""WikiText's tokenized form turned back into prose, which is what models are trained on."""

from __future__ import annotations

import re

UNKNOWN = "something"
"""What stands for `<unk>`: a word that any tokenizer knows."""

_RULES = (
    (re.compile(r" @(.)@ "), r"\1"),
    (re.compile(r" ('(?:s|t|m|d|re|ve|ll)\b)"), r"\1"),
    (re.compile(r" ([.,;:?!)\]])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r'" ([^"\n]*?) "'), r'"\1"'),
)


def as_prose(text: str) -> str:
    """Join what WikiText's tokenizer took apart, and spell `<unk>` as a word.

    ` @-@ `, ` @,@ ` and ` @.@ ` become the sign alone; spaces before punctuation, after opening
    brackets, inside pairs of quotes and before endings like `'s` go.
    """
    text = text.replace("<unk>", UNKNOWN)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
