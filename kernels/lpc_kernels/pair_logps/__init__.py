"""Summed log-probs of responses from hidden states, latents and the LM head, and the losses of their pairs.

Start at `api.py`.
"""

from lpc_kernels.pair_logps.algorithms import Algorithm
from lpc_kernels.pair_logps.api import PairLogps, pair_logps
from lpc_kernels.pair_logps.problem import PairLoss

__all__ = ["Algorithm", "PairLogps", "PairLoss", "pair_logps"]
