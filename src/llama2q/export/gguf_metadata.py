"""What a GGUF file tells llama.cpp about a model: hyperparameters, tokenizer, licence.

Source of the keys: ggml-org/ggml, docs/gguf.md; ggml-org/llama.cpp, `gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

from llama2q.errors import ExportError, TokenizerError
from llama2q.export.chat_templates import CHAT_TEMPLATES
from llama2q.export.gguf_container import ALIGNMENT, GgufType, Value
from llama2q.export.licence import licence_text
from llama2q.export.pieces import PieceModel, read_pieces
from llama2q.format.layout import TOKENIZER
from llama2q.format.metadata import Metadata
from llama2q.format.reader import L2qFile
from llama2q.tokenizer import Tokenizer

_QUANTIZATION_VERSION = 2


def metadata_of(file: L2qFile, main_type: GgufType) -> tuple[dict[str, Value], tuple[str, ...]]:
    """Return the metadata of a model, and what a user should know about its tokenizer.

    Parameters
    ----------
    file : L2qFile
    main_type : GgufType
        The type of most weights.

    Raises
    ------
    TokenizerError
        The tokenizer is damaged or of another vocabulary.
    ExportError
        It is of a kind that llama.cpp reads in another way.
    """
    config = file.config
    values: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": file.path.stem,
        "general.alignment": ALIGNMENT,
        "general.file_type": main_type.file_type,
        "general.quantization_version": _QUANTIZATION_VERSION,
        **_licence(file.metadata),
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
    }
    model = read_pieces(file.array(TOKENIZER).tobytes())
    if len(model.pieces) != config.vocab_size:
        raise TokenizerError(
            f"{file.path.name}: tokenizer.model has {len(model.pieces)} pieces, the model "
            f"{config.vocab_size} tokens; convert again with the model's own tokenizer"
        )
    values |= _tokenizer(file.path.name, model)
    if file.template in CHAT_TEMPLATES:
        values["tokenizer.chat_template"] = CHAT_TEMPLATES[file.template]
    return values, _notes(model)


def _licence(metadata: Metadata) -> dict[str, Value]:
    values: dict[str, Value] = {}
    if metadata.attribution is not None:
        values["general.license"] = "llama2"
        values["general.license.name"] = "LLAMA 2 Community License"
        values["general.license.link"] = "https://ai.meta.com/llama/license/"
    if (text := licence_text(metadata)) is not None:
        values["general.license.text"] = text
    return values


def _tokenizer(where: str, model: PieceModel) -> dict[str, Value]:
    if not model.is_bpe:
        raise ExportError(
            f"{where}: tokenizer.model is not of SentencePiece's kind BPE, which is what llama.cpp "
            "takes a Llama model's to be; it would read texts as other tokens"
        )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.text for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in model.pieces],
        "tokenizer.ggml.bos_token_id": Tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": Tokenizer.eos_id,
        "tokenizer.ggml.unknown_token_id": Tokenizer.unk_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": model.adds_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": model.removes_extra_spaces,
    }


def _notes(model: PieceModel) -> tuple[str, ...]:
    notes = []
    if model.has_character_map:
        notes.append(
            "tokenizer.model replaces characters (such as full-width letters) before it looks for "
            "tokens; llama.cpp does not"
        )
    if model.removes_extra_spaces:
        notes.append(
            "tokenizer.model drops spaces at the ends of a text and all but one of several; "
            "llama.cpp keeps them"
        )
    return tuple(notes)
