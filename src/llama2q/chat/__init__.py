"""Chat prompts as token ids: messages, formats that models were trained with, encoding."""

from llama2q.chat.encode import encode_chat
from llama2q.chat.messages import Message
from llama2q.chat.templates import TEMPLATES

__all__ = ["TEMPLATES", "Message", "encode_chat"]
