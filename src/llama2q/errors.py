"""Every error that llama2q raises on purpose, one class per kind of fault.

All derive from `Llama2qError`. A message says what was found, what was expected and what to do.
"""

from __future__ import annotations


class Llama2qError(Exception):
    """Base class of all errors of this package."""


class InvalidArgumentError(Llama2qError, ValueError):
    """An argument has a wrong type, shape, stride or value."""


class MissingPackageError(Llama2qError, ImportError):
    """An optional package is needed; the message says how to install it."""


# --- checkpoints (Meta's download, Hugging Face's folders, GGUF files) ------------------------


class CheckpointError(Llama2qError):
    """Base class of faults in a checkpoint folder."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The folder holds no checkpoint."""


class UnreadableFileError(CheckpointError):
    """A file of the checkpoint cannot be opened or read."""


class MissingShardError(CheckpointError):
    """A file of the weights is missing: a number of Meta's set, or one that an index names."""


class ShardIndexError(CheckpointError):
    """The index of a sharded checkpoint is absent, malformed, or disagrees with the files."""


class TruncatedShardError(CheckpointError):
    """A shard is shorter than its own directory says."""


class ShardFormatError(CheckpointError):
    """A file of the weights is not the zip archive, safetensors or GGUF file it should be."""


class CorruptShardError(CheckpointError):
    """A shard's data does not match the checksum stored beside it."""


class ChecksumError(CheckpointError):
    """A file has not the MD5 in the checklist, or the SHA-256 by which a cache names it."""


class ChecklistError(CheckpointError):
    """The checklist beside the checkpoint is malformed, or names a file that is missing."""


class UnsafePickleError(CheckpointError):
    """A shard's pickle asks for something other than plain tensors."""


class ParamsError(CheckpointError):
    """Hyperparameters are absent, unreadable, or disagree with the tensors."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is sound, but of a model that this engine does not compute."""


class ChatTemplateError(CheckpointError):
    """The model's chat template cannot be told; it has to be named."""


class TensorSetError(CheckpointError):
    """Tensors are missing, unexpected, or have a wrong shape or dtype."""


class AdapterError(CheckpointError):
    """A LoRA adapter is unsound, incomplete, or does not fit the model that it is merged into."""


class UnsupportedAdapterError(AdapterError):
    """A LoRA adapter is sound, but cannot be merged exactly."""


class NonFiniteWeightError(CheckpointError):
    """A weight is NaN or infinite."""


class QuantizationError(Llama2qError):
    """Weights cannot be represented in the asked type."""


class CalibrationError(Llama2qError):
    """A model cannot be calibrated: what it computes is not finite."""


class CalibrationTextError(Llama2qError):
    """The text to calibrate on is damaged, or too short for one window."""


class OutputExistsError(Llama2qError, FileExistsError):
    """The output file exists and overwriting was not asked for."""


class DiskSpaceError(Llama2qError, OSError):
    """The disk has no room for the output."""


class FileInUseError(Llama2qError, OSError):
    """A file cannot be replaced while a program has it open or mapped (Windows)."""


class OutputError(Llama2qError, OSError):
    """The system refuses to write the output."""


# --- .l2q files ------------------------------------------------------------------------------


class FormatError(Llama2qError):
    """Base class of faults in a `.l2q` file."""


class NotAnL2qFileError(FormatError):
    """The file is something else."""


class UnsupportedVersionError(FormatError):
    """The file was written by a newer format version."""


class TruncatedFileError(FormatError):
    """The file is shorter, or longer, than its header says."""


class HeaderError(FormatError):
    """The header breaks a rule of the format."""


class ModelIdError(FormatError):
    """The header does not hash to the model id stored in it."""


class TensorLayoutError(FormatError):
    """A tensor's name, dtype, shape or place differs from what the config demands."""


class CorruptDataError(FormatError):
    """Tensor data fails its hash or holds forbidden values."""


# --- tokenizer -------------------------------------------------------------------------------


class TokenizerError(Llama2qError):
    """The tokenizer model is absent, unreadable or of the wrong size."""


class VocabularyMismatchError(TokenizerError):
    """Two models that are compared do not have the same tokens."""


# --- export ----------------------------------------------------------------------------------


class ExportError(Llama2qError):
    """The other form cannot hold the model as it is."""


# --- chat ------------------------------------------------------------------------------------


class MessagesError(InvalidArgumentError):
    """A chat message is malformed, not its role's turn, or holds a tag of the chat format."""


# --- engine ----------------------------------------------------------------------------------


class ContextLengthError(Llama2qError, ValueError):
    """The prompt and the tokens asked for do not fit the context."""


class InsufficientMemoryError(Llama2qError, MemoryError):
    """KV cache and work space do not fit the memory that is free."""


class KvCacheFullError(Llama2qError):
    """No free KV-cache blocks are left for another sequence."""


class NonFiniteError(Llama2qError, ArithmeticError):
    """An activation or logit became NaN or infinite."""


class UnsupportedIsaError(Llama2qError):
    """The asked instruction set is unknown or not available on this CPU."""


class DeviceError(Llama2qError):
    """A GPU, its driver or the library of its kernels cannot do what was asked."""


class ReceiptError(Llama2qError, ValueError):
    """A receipt is malformed, or is not of this model or version."""


class CancelledError(Llama2qError):
    """A step was cancelled through its flag."""


class SessionBusyError(Llama2qError):
    """A stream of the session is open."""


class SessionFileError(Llama2qError):
    """A saved session is damaged, or is not of this model, KV cache type and RoPE."""


class ChatFileError(Llama2qError, ValueError):
    """A file is no saved chat."""


class ClosedError(Llama2qError, ValueError):
    """The model, stream or sequence has been closed."""
