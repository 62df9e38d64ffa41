"""One step of several models with TransformerEngine's layers, which a stand-in computes, and with the portable ones.

torchrun --nproc-per-node N te_worker.py LAYOUT OUTPUT_DIR

Rank r writes OUTPUT_DIR/LAYOUT-r.pt: `steps`, case -> implementation -> what `layout_worker.run_case` gives, and
`modules`, whose forward passes ran; in a single process also `fp8`, kind of `fp8_configs` -> what `fp8_step` gives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "standin"), str(HERE.parent / "distributed")]

# Before megatron_lpc, which would hide it on a machine without a GPU.
import transformer_engine  # noqa: E402, I001

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from layout_cases import layout_config, pair_batches, start_config  # noqa: E402
from layout_worker import run_case  # noqa: E402
from megatron.core.models.common.embeddings import rope_utils  # noqa: E402
from transformer_engine.common.recipe import Recipe  # noqa: E402
from transformer_engine.pytorch import Linear  # noqa: E402
from transformer_engine.pytorch.fp8 import FP8GlobalStateManager  # noqa: E402
from transformer_engine.pytorch.quantization import rounded  # noqa: E402

from megatron_lpc.config import Config, seq_len_multiple, with_options  # noqa: E402
from megatron_lpc.config.rules.model import fp8 as broken_fp8_rules  # noqa: E402
from megatron_lpc.data.batch import PairBatch  # noqa: E402
from megatron_lpc.losses import LatentSchedule  # noqa: E402
from megatron_lpc.model import build_model, unwrapped  # noqa: E402
from megatron_lpc.training.objective import TrainingLoss, training_query  # noqa: E402
from megatron_lpc.training.optimizer import gradient_norm, update_weights  # noqa: E402
from megatron_lpc.training.pipeline import score_pass, train_pass  # noqa: E402
from megatron_lpc.training.policy import make_trainable  # noqa: E402
from megatron_lpc.training.reference import OnlineReference  # noqa: E402
from megatron_lpc.training.setup import RunContext, seed_everything, start_distributed  # noqa: E402

CASES: dict[str, tuple[str, str]] = {
    "untied": ("dpo-lpc-untied", "separate"),
    "untied-packed": ("dpo-lpc-untied", "packed"),
    "tied": ("dpo-lpc-tied", "separate"),
    "experts": ("dpo-lpc-experts", "separate"),
    "gemma": ("dpo-lpc-tied", "packed"),
}
"""name -> case of the layout table, packing. `untied` has norms of queries and keys, biases and a sliding window."""
TWO_RANK_CASES = ("untied-packed", "experts")
_GEMMA = {"apply_layernorm_1p": True, "activation": "geglu", "scale_embeddings": True}


def case_config(layout: str, name: str) -> Config:
    config = layout_config(layout, CASES[name][0])
    return replace(config, model=replace(config.model, **_GEMMA)) if name == "gemma" else config


def with_te(config: Config) -> Config:
    return with_options(config, transformer_impl="transformer_engine")


def fp8_configs() -> dict[str, Config]:
    """Every recipe, with sizes that it takes; the first one under recomputation too."""
    start = with_te(start_config("single", "start-lpc-bf16"))
    start = with_options(start, lr=1e-2, untie_embeddings_and_output_weights=True, qk_layernorm=True)
    tensorwise = with_options(start, fp8_format="hybrid")
    large = with_options(
        start, hidden_size=128, kv_channels=32, num_query_groups=2, ffn_hidden_size=128, max_position_embeddings=128
    )
    configs = {
        "tensorwise": tensorwise,
        "tensorwise-recompute": replace(tensorwise, parallel=layout_config("recompute_full", "dpo-lpc-tied").parallel),
        "blockwise": with_options(large, fp8_format="e4m3", fp8_recipe="blockwise"),
        "mxfp8": with_options(large, fp8_format="hybrid", fp8_recipe="mxfp8"),
    }
    for config in configs.values():
        assert not list(broken_fp8_rules(config))
    return configs


def fp8_step(context: RunContext) -> dict[str, Any]:
    """Two steps in FP8: where it is on, what policy and reference give at first, and the weights that are multiplied.

    `where`: as `forward_passes` gives it. `logps`: those of the policy and of the
    reference before the first step. `stale`: matrices whose FP8 form is not that of the weights after the last step.
    `fused_gradients`: matrices whose gradient is added to `main_grad` in the matrix product.
    """
    config, platform, groups = context.config, context.platform, context.groups
    seed_everything(config.training.seed, groups)
    policy = make_trainable(context, build_model(config, platform, groups, config.latent), train_iters=4)
    batches = whole_blocks(pair_batches(config), seq_len_multiple(config))
    batches = OnlineReference(context).attach(batches)
    state = LatentSchedule(config.latent, 10).at(5)
    query, loss = training_query(config, state), TrainingLoss(config, state)
    with forward_passes() as where:
        first = score_pass(policy.chunks, batches, query)
        logps = [(scores.logps[0], batch.reference_logps) for scores, batch in zip(first, batches, strict=True)]
        for _ in range(2):
            policy.scheduler.step(increment=1)
            for chunk in policy.chunks:
                chunk.zero_grad_buffer()
            policy.optimizer.zero_grad()
            train_pass(policy.chunks, batches, query, loss)
            update_weights(policy.optimizer, gradient_norm(policy.optimizer))
        score_pass(policy.chunks, batches, query)
    linear = [module for module in unwrapped(policy.chunks[0]).modules() if isinstance(module, Linear)]
    stale = [module for module in linear if not torch.equal(module._fp8_weight, expected_weight(module))]
    return {
        "where": where,
        "logps": logps,
        "matrices": len(linear),
        "stale": len(stale),
        "fused_gradients": sum(module.fuse_wgrad_accumulation for module in linear),
    }


@contextmanager
def unfused_rope_refused() -> Iterator[None]:
    """core's own rotary embedding would read lengths from the device, in each layer."""
    names = ("_apply_rotary_pos_emb_bshd", "_apply_rotary_pos_emb_thd")
    with patch.multiple(rope_utils, **dict.fromkeys(names, Mock(side_effect=AssertionError("RoPE is not fused")))):
        yield


@contextmanager
def forward_passes() -> Iterator[dict[str, set[tuple | None]]]:
    """Fills: class of a module -> recipes of its forward passes."""
    where: dict[str, set[tuple | None]] = {}

    def record(module, args):
        where.setdefault(type(module).__name__, set()).add(in_words(FP8GlobalStateManager.get_fp8_recipe()))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(record)
    yield where
    hook.remove()


def in_words(recipe: Recipe | None) -> tuple[str, str, bool, bool] | None:
    """Class, format, and whether attention is FP8 inside and at its ends; None without FP8."""
    if recipe is None:
        return None
    return type(recipe).__name__, recipe.fp8_format.name, recipe.fp8_dpa, recipe.fp8_mha


def expected_weight(module: Linear) -> torch.Tensor:
    return rounded(module.weight.detach(), module.recipe.fp8_format.value.forward)


def whole_blocks(batches: list[PairBatch], multiple: int) -> list[PairBatch]:
    """Sequences as long as FP8 needs them."""
    return [batch.padded_to(-(-batch.tokens.size(1) // multiple) * multiple, pad_id=0) for batch in batches]


def main() -> None:
    layout, output = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    assert transformer_engine.__version__ == "2.11.0"
    context = start_distributed(layout_config(layout, "dpo-lpc-tied"))
    result: dict[str, Any] = {"steps": {}, "modules": {}}
    for name in CASES if layout == "single" else TWO_RANK_CASES:
        config = case_config(layout, name)
        for implementation, its_config in (("local", config), ("transformer_engine", with_te(config))):
            without_unfused = unfused_rope_refused() if implementation == "transformer_engine" else nullcontext()
            with forward_passes() as where, without_unfused:
                step = run_case(replace(context, config=its_config), CASES[name][1])
            result["steps"].setdefault(name, {})[implementation] = step
            result["modules"].setdefault(name, {})[implementation] = set(where)
    if layout == "single":
        result["fp8"] = {kind: fp8_step(replace(context, config=config)) for kind, config in fp8_configs().items()}
    torch.save(result, output / f"{layout}-{dist.get_rank()}.pt")
    dist.barrier()


if __name__ == "__main__":
    main()
