"""The `.l2q` file: its layout, writer, strict reader and verification. See `FORMAT.md`."""

from llama2q.format.reader import L2qFile, TensorInfo
from llama2q.format.recipe import Recipe, TensorType
from llama2q.format.writer import Writer

__all__ = ["L2qFile", "Recipe", "TensorInfo", "TensorType", "Writer"]
