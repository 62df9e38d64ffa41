"""The configurations of examples/cluster, on the GPUs that their README names."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_lpc.config import load_yaml
from megatron_lpc.plan.options import PlanOptions, resolved
from megatron_lpc.plan.prediction import make_plan

FOLDER = Path(__file__).parents[2] / "examples" / "cluster"
GPUS = {"llama3-8b": 8, "llama3-70b": 64, "mistral-7b": 8, "qwen3-8b": 8, "mixtral-8x7b": 16}


@pytest.mark.parametrize("name", GPUS)
def test_an_example_fits_the_gpus_that_it_is_for(name):
    config = resolved(load_yaml(FOLDER / f"{name}.yaml"), GPUS[name])
    plan = make_plan(config, PlanOptions(world_size=GPUS[name], gpu="A100"))
    assert plan.fits, f"{plan.peak / 2**30:.1f} GiB of 80"
    assert plan.speed is not None
    assert 0.1 < plan.speed.mfu < 0.5
