"""Tokenizers for the tests of chat prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from llama2q.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def llama2_path(shared_dir: Path) -> Path:
    """The tokenizer of Llama 2."""
    return shared_dir / "checkpoints" / "llama2-tokenizer" / "tokenizer.model"


@pytest.fixture(scope="session")
def llama2(llama2_path: Path) -> Tokenizer:
    """Llama 2's, ours."""
    return Tokenizer.from_file(llama2_path)


@pytest.fixture(scope="session", params=["llama2", "mini"])
def model_path(request: pytest.FixtureRequest, mini_checkpoint: Path) -> Path:
    """One of the two tokenizers."""
    if request.param == "mini":
        return mini_checkpoint / "tokenizer.model"
    path: Path = request.getfixturevalue("llama2_path")
    return path


@pytest.fixture(scope="session")
def tokenizer(model_path: Path) -> Tokenizer:
    """Ours."""
    return Tokenizer.from_file(model_path)


@pytest.fixture(scope="session")
def sentence_piece(model_path: Path) -> SentencePieceProcessor:
    """SentencePiece itself."""
    return SentencePieceProcessor(model_proto=model_path.read_bytes())
