"""With the vocabulary, only the weight gradient and one chunk of logits grow in memory.

Measured in a fresh process per pass.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .pair_logps_memory import CHUNK, HIDDEN_SIZE, PAIRS, TOKENS

SMALL, LARGE = 20_000, 60_000


def extra(algorithm: str, vocab: int) -> int:
    script = Path(__file__).with_name("pair_logps_memory.py")
    # Every tensor has separate pages, which are returned when it is freed: what glibc's heap keeps for later differs
    # from run to run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(script), algorithm, str(vocab)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("algorithm", ["recompute", "pairwise", "frozen"])
def test_grows_by_the_weight_gradient_and_a_chunk(algorithm):
    weight_gradient = HIDDEN_SIZE if algorithm != "frozen" else 0
    bias_and_its_gradient = 2 * PAIRS
    bytes_per_token_id = 4 * (CHUNK + weight_gradient + bias_and_its_gradient)
    growth = extra(algorithm, LARGE) - extra(algorithm, SMALL)
    assert growth < 1.2 * bytes_per_token_id * (LARGE - SMALL)


def test_plain_pytorch_would_fail():
    assert extra("plain", SMALL) > 2 * 4 * TOKENS * SMALL
    assert extra("pairwise", SMALL) < 0.2 * extra("plain", SMALL)
