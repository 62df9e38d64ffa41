"""Memory of a pass, measured in a fresh process, grows with the vocabulary by the weight gradient and one chunk of
logits alone.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .pair_logps_memory import CHUNK, PAIRS, ROWS, WIDTH

SMALL, LARGE = 20_000, 60_000


def extra(algorithm: str, words: int) -> int:
    script = Path(__file__).with_name("pair_logps_memory.py")
    # Every tensor in pages of its own, given back when it is freed: what the heap of glibc keeps for later differs
    # from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(script), algorithm, str(words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen"])
def test_grows_by_the_weight_gradient_and_a_chunk(algorithm):
    a_word = 4 * (CHUNK + (WIDTH if algorithm != "frozen" else 0) + 2 * PAIRS)  # what the latents add, and its gradient
    growth = extra(algorithm, LARGE) - extra(algorithm, SMALL)
    assert growth < 1.2 * a_word * (LARGE - SMALL)


def test_plain_pytorch_would_fail():
    assert extra("plain", SMALL) > 2 * 4 * ROWS * SMALL
    assert extra("pairwise", SMALL) < 0.2 * extra("plain", SMALL)
