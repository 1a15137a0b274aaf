"""The commands within a chat: `/name argument`."""

from __future__ import annotations

COMMANDS = {
    "/system": ("[TEXT]", "Set the system prompt, for the whole chat; - removes it; show it."),
    "/reset": ("", "Forget all questions and answers; the system prompt stays."),
    "/undo": ("", "Take back the last question and its answer."),
    "/retry": ("", "Answer the last question anew."),
    "/save": ("PATH", "Write the chat to a file (JSON) that only you can read."),
    "/load": ("PATH", "Go on with a chat that /save wrote."),
    "/stats": ("", "Show speed, use of the context, memory."),
    "/help": ("", "Show this list."),
    "/exit": ("", "Leave; so does Ctrl-D."),
}
"""Argument and purpose of each."""


def split(line: str) -> tuple[str, str] | None:
    """Return name and argument of a command; None for a text to the model.

    A text that begins with a slash is told from a command by a space before it.
    """
    if not line.startswith("/"):
        return None
    name, _, argument = line.partition(" ")
    return name, argument.strip()


def help_text() -> str:
    """Return the list of commands."""
    rows = [(f"{name} {argument}", purpose) for name, (argument, purpose) in COMMANDS.items()]
    lines = [f"  {row:<15} {purpose}" for row, purpose in rows]
    return "\n".join(
        [
            *lines,
            "A text that begins with / is told from a command by a space before it. Alt-Enter",
            "begins a new line. Ctrl-C stops an answer; a second Ctrl-C leaves.",
        ]
    )
