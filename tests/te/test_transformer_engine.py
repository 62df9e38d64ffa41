"""TransformerEngine's layers as megatron-core calls them, on a stand-in whose signatures are those of the real ones.

Nothing of TransformerEngine itself runs here, and none of its kernels: see `standin/transformer_engine`.
"""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from launch import run, torchrun_command
from signatures import SIGNATURES, signatures

HERE = Path(__file__).parent
STANDIN = HERE / "standin" / "transformer_engine"
# Fused activations are compiled on a GPU; here they run as they are written.
ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1"}
PROCESSES = {"single": 1, "tp2_sp": 2}
STEPS = [
    *(("single", case) for case in ("untied", "untied-packed", "tied", "experts", "gemma")),
    *(("tp2_sp", case) for case in ("untied-packed", "experts")),
]

RECIPES = {
    "tensorwise": ("Float8CurrentScaling", "HYBRID"),
    "tensorwise-recompute": ("Float8CurrentScaling", "HYBRID"),
    "blockwise": ("Float8BlockScaling", "E4M3"),
    "mxfp8": ("MXFP8BlockScaling", "HYBRID"),
}
"""Kind of `te_worker.fp8_configs` -> class and format of the recipe that reaches TransformerEngine."""


def run_worker(layout: str, folder: Path) -> list[dict]:
    """What each rank of a layout wrote (see `te_worker`)."""
    run(torchrun_command(PROCESSES[layout], HERE / "te_worker.py", layout, str(folder)), environment=ENVIRONMENT)
    return [torch.load(folder / f"{layout}-{rank}.pt", weights_only=True) for rank in range(PROCESSES[layout])]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run_worker("single", tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def tp2_sp(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run_worker("tp2_sp", tmp_path_factory.mktemp("tp2_sp"))


@pytest.mark.distributed
@pytest.mark.parametrize(("layout", "case"), STEPS)
def test_layers_compute_what_the_portable_ones_do(request: pytest.FixtureRequest, layout: str, case: str) -> None:
    """Under the same names in checkpoints, with weight gradients added to `main_grad` and fused rotary embedding."""
    for rank in request.getfixturevalue(layout):
        ours, theirs = rank["steps"][case]["local"], rank["steps"][case]["transformer_engine"]
        torch.testing.assert_close(theirs["metrics"], ours["metrics"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(theirs["logps"], ours["logps"], rtol=1e-5, atol=1e-5)
        assert theirs["grads"].keys() == ours["grads"].keys()
        for name, (shape, gradient) in ours["grads"].items():
            assert theirs["grads"][name][0] == shape
            torch.testing.assert_close(theirs["grads"][name][1], gradient, rtol=1e-4, atol=1e-5, msg=str(name))


@pytest.mark.distributed
def test_each_implementation_has_its_own_layers(single: list[dict]) -> None:
    (rank,) = single
    for case, modules in rank["modules"].items():
        ours, theirs = modules["local"], modules["transformer_engine"]
        assert {"TELayerNormColumnParallelLinear", "TEDotProductAttention", "TERowParallelLinear"} <= theirs - ours, (
            case
        )
        assert "FlashAttention" in ours - theirs, case
    assert "TEColumnParallelLinear" in rank["modules"]["experts"]["transformer_engine"]


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "recipe"), RECIPES.items())
def test_fp8_is_on_in_the_layers_and_nowhere_else(single: list[dict], kind: str, recipe: tuple[str, str]) -> None:
    """Attention itself is in bf16."""
    where = single[0]["fp8"][kind]["where"]
    for name in ("TELayerNormColumnParallelLinear", "TERowParallelLinear", "TEDotProductAttention"):
        assert where[name] == {(*recipe, False, False)}, name
    for name in ("LMHead", "LatentHead", "VocabParallelEmbedding", "TransformerBlock"):
        assert where[name] == {None}, name


@pytest.mark.distributed
@pytest.mark.parametrize("kind", RECIPES)
def test_fp8_of_policy_and_reference(single: list[dict], kind: str) -> None:
    found = single[0]["fp8"][kind]
    for policy, reference in found["logps"]:
        assert torch.equal(policy, reference), "the first loss is not ln 2"
    assert found["matrices"] == found["fused_gradients"] == 16
    assert found["stale"] == 0, "a pass multiplied with the FP8 form of earlier weights"


def test_signatures_are_those_of_the_installed_transformer_engine() -> None:
    """Where 2.11 is installed; its source is read, and needs no GPU."""
    spec = PathFinder.find_spec("transformer_engine")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("TransformerEngine is not installed")
    (folder,) = spec.submodule_search_locations
    metadata = list(Path(folder).parent.glob("transformer_engine-2.11.*.dist-info"))
    if not metadata:
        pytest.skip("the stand-in follows TransformerEngine 2.11")
    for file, (names, of_standin) in SIGNATURES.items():
        theirs, ours = signatures(Path(folder) / file, names), signatures(STANDIN / of_standin, names)
        for name in names:
            assert ours[name] == theirs[name], name
