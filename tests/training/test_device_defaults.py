"""Options that follow from the device where they are unset."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_lpc.config import Config, with_options
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.platform import Platform
from megatron_lpc.training.loaders import micro_batch_planner
from megatron_lpc.training.setup import resolve_device_defaults

CPU = Platform(torch.device("cpu"), "gloo")
CUDA = Platform(torch.device("cuda", 0), "nccl")


@pytest.mark.parametrize(
    ("platform", "bf16", "resolved"),
    [(CPU, None, False), (CPU, True, True), (CUDA, None, True), (CUDA, False, False)],
)
def test_bf16_is_on_for_a_gpu_unless_told_otherwise(platform, bf16, resolved):
    config = with_options(Config(), bf16=bf16)
    assert resolve_device_defaults(config, platform) == with_options(config, bf16=resolved)


@pytest.mark.parametrize(
    ("platform", "options", "multiple"),
    [
        (CPU, {}, 1),
        (CUDA, {}, 128),
        (CUDA, {"pad_to_multiple_of": 1}, 1),
        (CPU, {"pad_to_multiple_of": 64}, 64),
        (CPU, {"sequence_parallel": True, "tensor_model_parallel_size": 3}, 3),
        (CUDA, {"sequence_parallel": True, "tensor_model_parallel_size": 3}, 384),
        (CPU, {"pad_to_multiple_of": 4, "sequence_parallel": True, "tensor_model_parallel_size": 6}, 12),
    ],
)
def test_to_what_sequences_are_padded(platform, options, multiple):
    context = SimpleNamespace(config=with_options(Config(), **options), platform=platform)
    planner = micro_batch_planner(context, SimpleNamespace(pad_id=0))
    assert planner.pad_to_multiple == multiple


@pytest.mark.parametrize("share_prompt", [False, True])
def test_padding_only_appends(share_prompt):
    pairs = [EncodedPair([5, 6], [7, 8], [9]), EncodedPair([5], [7], [9, 9, 9])]

    def batch(multiple):
        return collate(pairs, [0, 1], [0, 1], pad_id=0, pad_to_multiple=multiple, share_prompt=share_prompt)

    padded, longer = batch(128), batch(1).padded_to(128, pad_id=0)
    assert padded.tokens.shape[1] == 128
    for name, tensor in vars(replace(padded, packing_layout=None)).items():
        if tensor is not None:
            assert torch.equal(tensor, getattr(longer, name)), name
    if share_prompt:
        assert torch.equal(padded.packing_layout.stacked, longer.packing_layout.stacked)
