"""Dialogues to test with."""

from __future__ import annotations

from hypothesis import strategies as st

from chat.meta_reference import Dialog

NASTY = st.sampled_from(
    [
        "", " ", "\n", "\t hi \n", "\u00a0\u3000 x \u2028", "▁", "▁▁a▁", "<s>", "</s>", "<unk>",
        "<0x0A>", "[INST", "INST]", "<<SYS>", "[ /INST]", "你好 世界。", "🦙👩\u200d👩\u200d👧",
        "שלום", "नमस्ते", "e\u0301", "\0", "\ufffd", "\r\n", "  two  spaces  ", "a" * 300,
    ]
)  # fmt: skip
TEXTS = st.one_of(
    NASTY,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(NASTY, max_size=3).map("".join),
)


def dialog(system: str | None, *turns: str) -> Dialog:
    """Messages of the user and the assistant in turns."""
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


@st.composite
def dialogs(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS) -> Dialog:
    """Dialogs of up to five turns, with and without a system message."""
    n_pairs = draw(st.integers(0, 4))
    turns = draw(st.lists(texts, min_size=2 * n_pairs + 1, max_size=2 * n_pairs + 1))
    return dialog(draw(st.none() | texts), *turns)
