"""Names of the forms in which preference data are published; megatron_lpc/data/data_formats.py reads them."""

from __future__ import annotations

from typing import Literal

DataFormat = Literal[
    "trl",
    "openrlhf",
    "alpaca",
    "sharegpt",
    "swift",
    "helpsteer2",
    "helpsteer3",
    "nectar",
    "nemo",
    "nemo_binary",
    "ultrafeedback",
    "ultrafeedback_binarized",
]

RANKED_FORMATS = ("helpsteer2", "helpsteer3", "nectar", "nemo", "ultrafeedback")
"""They hold several responses with scores or ranks, so no column is the chosen or the rejected response."""

WITHOUT_CHOSEN_COLUMN = (*RANKED_FORMATS, "swift")
"""`swift` has the chosen response at the end of its messages."""
