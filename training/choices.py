"""What commands let the user choose among: apart from its use, since the command line starts without torch."""

from enum import StrEnum
from typing import Literal

Keep = Literal["all", "last", "none"]  # checkpoints of finished trials; last: the last iteration's model


class Mode(StrEnum):
    """What an ensemble averages."""

    WEIGHTS = "weights"
    PREDICTIONS = "predictions"
    BOTH = "both"
