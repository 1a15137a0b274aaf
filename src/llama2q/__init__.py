"""Run Llama 2 on your own machine from one quantized file.

>>> import llama2q
>>> llama2q.convert("llama-2-7b-chat")  # doctest: +SKIP
>>> with llama2q.load("llama-2-7b-chat-int4.l2q") as llm:  # doctest: +SKIP
...     for chunk in llm.stream("Once upon a time", max_tokens=200):
...         print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llama2q import chat, errors
from llama2q._core import __version__
from llama2q.config import ModelConfig
from llama2q.errors import Llama2qError
from llama2q.generate.completion import Chunk, Completion, Timings, Usage
from llama2q.generate.llama import Llama
from llama2q.generate.load import load
from llama2q.generate.logprobs import Logprob
from llama2q.generate.receipt import Receipt
from llama2q.generate.score import Score
from llama2q.generate.stream import Stream
from llama2q.plan import Plan, plan
from llama2q.prediction import predict
from llama2q.sampling import SamplingParams
from llama2q.sessions import Session
from llama2q.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llama2q.converter.conversion_plan import ConversionPlan, plan_conversion
    from llama2q.converter.converter import ConvertReport, convert
    from llama2q.evaluate.compare import compare
    from llama2q.evaluate.comparison import Comparison
    from llama2q.export.gguf import export_gguf
    from llama2q.export.mlx import export_mlx
    from llama2q.export.report import ExportReport
    from llama2q.generate.replay import Replay, replay
else:
    _LATER = {
        "Comparison": "llama2q.evaluate.comparison",
        "ConversionPlan": "llama2q.converter.conversion_plan",
        "ConvertReport": "llama2q.converter.converter",
        "ExportReport": "llama2q.export.report",
        "Replay": "llama2q.generate.replay",
        "compare": "llama2q.evaluate.compare",
        "convert": "llama2q.converter.converter",
        "export_gguf": "llama2q.export.gguf",
        "export_mlx": "llama2q.export.mlx",
        "plan_conversion": "llama2q.converter.conversion_plan",
        "replay": "llama2q.generate.replay",
    }

    def __getattr__(name: str) -> Any:
        """Import what few who generate need, which converts and compares, when it is asked for."""
        if name in _LATER:
            return getattr(import_module(_LATER[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Chunk",
    "Comparison",
    "Completion",
    "ConversionPlan",
    "ConvertReport",
    "ExportReport",
    "Llama",
    "Llama2qError",
    "Logprob",
    "ModelConfig",
    "Plan",
    "Receipt",
    "Replay",
    "SamplingParams",
    "Score",
    "Session",
    "Stream",
    "Timings",
    "Tokenizer",
    "Usage",
    "__version__",
    "chat",
    "compare",
    "convert",
    "errors",
    "export_gguf",
    "export_mlx",
    "load",
    "plan",
    "plan_conversion",
    "predict",
    "replay",
]
