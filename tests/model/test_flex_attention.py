"""The compilation of FlexAttention, and what FlashAttention-4 needs of a machine."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from megatron_lpc.config import ConfigError, ModelConfig
from megatron_lpc.model import flash_backend, flex_attention
from megatron_lpc.model.attention import FlashAttention
from megatron_lpc.model.flash_backend import flash_query_block
from megatron_lpc.model.flex_attention import attend_by_flex
from megatron_lpc.model.flex_mask import sliding_window_block_mask
from megatron_lpc.model.layer_spec import portable_layer


@pytest.fixture
def _compiled_by_dynamo_alone(monkeypatch):
    """Graphs are traced and guarded as for a GPU, and run without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(flex_attention, "RECOMPILE_LIMIT", 2)
    torch.compiler.reset()
    flex_attention.compiled_flex_attention.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=1):
        yield
    torch.compiler.reset()
    flex_attention.compiled_flex_attention.cache_clear()


def attend(heads: int) -> torch.Tensor:
    """Another number of heads is another graph always, where another length may share one."""
    query = torch.randn(1, heads, 160, 16)
    block_mask = sliding_window_block_mask(1, 160, 40, query.device)
    return attend_by_flex(query, query, query, block_mask=block_mask, scale=None, backend="auto")


@pytest.mark.usefixtures("_compiled_by_dynamo_alone")
@torch.no_grad()
def test_past_the_limit_of_recompilations_is_an_error_and_no_eager_pass(recwarn):
    for heads in (1, 2, 1):
        attend(heads)
    message = r"compiled for 2 kinds of inputs, .* the shape \(1, 3, 160, 16\); .* --pad-to-multiple-of"
    with pytest.raises(RuntimeError, match=message):
        attend(3)
    attend(2)
    assert not [warning for warning in recwarn if "materializes the full scores" in str(warning.message)]


def test_the_option_reaches_the_layers():
    layer = portable_layer(ModelConfig(flex_attention_backend="flash"), tp_group=None)
    make = layer.submodules.self_attention.submodules.core_attention
    assert (make.func, make.keywords) == (FlashAttention, {"flex_backend": "flash"})


@pytest.fixture
def machine(monkeypatch):
    """Pretends a GPU, with the package or without."""

    def machine(capability: tuple[int, int], installed: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(flash_backend, "find_spec", lambda name: object() if installed else None)

    return machine


@pytest.mark.parametrize(
    ("capability", "channels", "queries"),
    [((9, 0), 128, 128), ((9, 0), 192, 128), ((10, 0), 128, 256), ((10, 3), 256, 256), ((11, 0), 64, 256)],
)
def test_blocks_of_flash_attention_4(machine, capability, channels, queries):
    machine(capability)
    assert flash_query_block(channels) == queries


@pytest.mark.parametrize(
    ("capability", "channels", "message"),
    [
        ((8, 0), 64, "compute capability 8.0, and FlashAttention-4 has block masks for 9.x, 10.x, 11.x only"),
        ((12, 0), 64, "compute capability 12.0"),
        ((9, 0), 264, "heads have 264 channels, and FlashAttention-4 takes up to 256 on compute capability 9.0"),
        ((10, 0), 136, "heads have 136 channels, and FlashAttention-4 takes up to 128, or exactly 256"),
    ],
)
def test_a_gpu_without_such_kernels_is_refused(machine, capability, channels, message):
    machine(capability)
    with pytest.raises(ConfigError) as error:
        flash_query_block(channels)
    (line,) = str(error.value).splitlines()
    assert line.startswith("--flex-attention-backend flash: ")
    assert message in line


def test_all_that_is_missing_is_said_at_once(machine):
    machine((8, 0), installed=False)
    with pytest.raises(ConfigError) as error:
        flash_query_block(64)
    assert ["flash_attn.cute" in line for line in str(error.value).splitlines()] == [True, False]


@pytest.mark.parametrize(("folder", "installed"), [("flash_attn/cute", True), ("flash_attn", False), ("", False)])
def test_the_package_of_version_2_is_not_enough(tmp_path, monkeypatch, folder, installed):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert flash_backend._is_installed() is installed
