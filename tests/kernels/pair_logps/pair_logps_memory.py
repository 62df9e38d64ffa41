"""Prints the bytes that one forward and backward pass adds to this process at its highest.

python pair_logps_memory.py ALGORITHM VOCABULARY_SIZE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lpc_kernels import pair_logps

TOKENS, HIDDEN_SIZE, PAIRS, CHUNK = 2048, 32, 16, 128


def main() -> None:
    algorithm, vocab = sys.argv[1], int(sys.argv[2])
    _pass(algorithm, 64)
    hidden = torch.randn(TOKENS, HIDDEN_SIZE).requires_grad_()
    weight = torch.randn(vocab, HIDDEN_SIZE).requires_grad_()
    resident = _resident("VmRSS")
    _run(algorithm, hidden, weight)
    # Not ru_maxrss: that also remembers the process which started this one.
    print(_resident("VmHWM") - resident)


def _resident(field: str) -> int:
    """Bytes; VmHWM is the peak of VmRSS."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _pass(algorithm: str, vocab: int) -> None:
    """Once in small: what is loaded and allocated the first time does not count."""
    _run(algorithm, torch.randn(TOKENS, HIDDEN_SIZE).requires_grad_(), torch.randn(vocab, HIDDEN_SIZE).requires_grad_())


def _run(algorithm: str, hidden: torch.Tensor, weight: torch.Tensor) -> None:
    targets, segments = torch.arange(TOKENS) % weight.size(0), torch.arange(TOKENS) // (TOKENS // (2 * PAIRS))
    z = torch.randn(PAIRS, HIDDEN_SIZE).requires_grad_()
    if algorithm == "plain":
        logps = (hidden + z[segments % PAIRS]) @ weight.t()
        sums = logps.log_softmax(-1).gather(1, targets[:, None])[:, 0].view(2 * PAIRS, -1).sum(-1)
        _loss(sums.view(1, 2, PAIRS), targets).sum().backward()
        return
    weight.requires_grad_(algorithm != "frozen")
    pair_logps(
        hidden, weight, targets, segments, 2 * PAIRS, z=z, pair_loss=_loss, algorithm=algorithm, chunk_size=CHUNK
    ).loss.backward()


def _loss(logps: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    return -torch.nn.functional.logsigmoid(logps[:, 0] - logps[:, 1]).sum(0)


if __name__ == "__main__":
    main()
