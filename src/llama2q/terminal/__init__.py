"""A chat in a terminal: reading lines, commands, answers as they come."""

from llama2q.terminal.chat import TerminalChat
from llama2q.terminal.lines import Lines, default_history, open_lines

__all__ = ["Lines", "TerminalChat", "default_history", "open_lines"]
