"""Every configuration that we ship loads and passes the rules, for the processes that its launch script starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_lpc.config import load_yaml, validate

EXAMPLES = Path(__file__).parents[2] / "examples"
WORLDS = {
    "llama3/8b.yaml": (8, "cuda"),
    "llama3/70b.yaml": (64, "cuda"),
    "hh": (4, "cpu"),
    "recovery": (1, "cpu"),
    "smollm2": (3, "cpu"),
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_example_is_valid(path: Path) -> None:
    name = str(path.relative_to(EXAMPLES))
    world, device = WORLDS.get(name) or WORLDS[path.parent.name]
    validate(load_yaml(path), world, device)
