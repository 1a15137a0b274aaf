"""A module that nothing may import: it leaves a trace, as code hidden in a checkpoint would."""

import os
from pathlib import Path


def sing(*_: object) -> None:
    """Leave the trace: a file in the folder of the process."""
    Path(os.environ.get("LLAMA2Q_CANARY", "canary.txt")).touch()


sing()
