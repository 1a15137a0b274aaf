"""Sessions: a text that grows call by call, and keeps what was computed for it."""

from llama2q.sessions.session import Session

__all__ = ["Session"]
