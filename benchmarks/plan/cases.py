"""Runs whose memory is predicted and measured: one model of 100 million parameters, fp32, trained in several ways."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_lpc.config import Config, DataConfig, ModelConfig, ParallelConfig, with_options
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.data.micro_batches import IndexedPair, MicroBatchPlanner
from megatron_lpc.plan.micro_batch import longest_lengths
from megatron_lpc.plan.options import resolved

_MODEL: dict[str, Any] = {
    "num_layers": 8,
    "hidden_size": 768,
    "ffn_hidden_size": 2048,
    "num_attention_heads": 12,
    "num_query_groups": 4,
    "vocab_size": 32000,
    "untie_embeddings_and_output_weights": True,
}


@dataclass(frozen=True)
class Case:
    """A run on some processes of this machine."""

    world_size: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Config:
        """Its options: without a reference, where they do not ask for one."""
        base = Config(
            model=ModelConfig(**_MODEL),
            data=DataConfig(train_data=["none"], tokenizer_model="none", max_length=256, max_prompt_length=128),
            parallel=ParallelConfig(device="cpu"),
        )
        defaults = {"micro_batch_size": 2, "global_batch_size": 2, "loss_type": "simpo", "train_iters": 10}
        return resolved(with_options(base, **defaults | self.options), self.world_size)


CASES = {
    "padded": Case(),
    "full recomputation, online reference": Case(
        options={
            "loss_type": "dpo",
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    ),
    "shared prompts, packed, tied": Case(
        options={
            "share_prompt": True,
            "pack_to": 1152,
            "micro_batch_size": 4,
            "global_batch_size": 3,
            "untie_embeddings_and_output_weights": False,
        }
    ),
    "4 experts": Case(options={"num_experts": 4, "num_layers": 4}),
    "frozen backbone": Case(options={"freeze_backbone": True, "loss_type": "dpo"}),
    "TP 2, sequence parallel": Case(2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP 2": Case(2, {"pipeline_model_parallel_size": 2, "global_batch_size": 8}),
    "DP 2, distributed optimizer": Case(2, {"use_distributed_optimizer": True, "global_batch_size": 4}),
}
"""By name."""


def pairs_of_a_step(config: Config, planner: MicroBatchPlanner, copies: int) -> list[list[IndexedPair]]:
    """The micro-batches of one rank, of pairs as long as they may be.

    Args:
        copies: data parallel ranks.
    """
    lengths = longest_lengths(config)
    pair = EncodedPair([1] * lengths.prompt, [2] * lengths.response, [3] * lengths.response)
    count = config.training.global_batch_size // copies
    indexed = [IndexedPair(pair=pair, sample_id=number, example_index=number) for number in range(count)]
    plan = planner.plan(lengths.array.repeat(count, 0))
    return [[indexed[number] for number in micro_batch] for micro_batch in plan]
