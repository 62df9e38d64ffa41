"""What a folder holds, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from megatron_lpc.config import ModelConfig, layer_windows, layers_without_rope
from megatron_lpc.convert.description import ModelDescription
from megatron_lpc.convert.open_model import OpenedModel
from megatron_lpc.convert.tensor_files import TensorInfo

Row = tuple[str, str]


def inspection_table(path: Path, opened: OpenedModel) -> Table:
    """Family, sizes, dtype, head, tokenizer and, for a run, its parallel layout and step."""
    table = Table(title=str(path), title_justify="left", show_header=False)
    for row in _rows(opened):
        table.add_row(*row)
    return table


def _rows(opened: OpenedModel) -> Iterator[Row]:
    family = opened.described.family
    yield "format", opened.kind
    yield "family", f"{family.model_type} ({family.architecture})"
    yield from _model_rows(opened.described.model)
    if opened.described.padded_query_groups:
        yield "padded query groups", f"{opened.described.padded_query_groups}, of zeros"
    yield from _stored_rows(opened.stored)
    yield "LPC head", _head(opened.described)
    yield from _run_rows(opened.run)
    yield "tokenizer", str(opened.tokenizer or "none")


def _model_rows(model: ModelConfig) -> Iterator[Row]:
    yield "layers, hidden, MLP", f"{model.num_layers}, {model.hidden_size}, {model.ffn_hidden_size}"
    if model.num_experts is not None:
        yield "experts", f"{model.num_experts} per layer, {model.moe_router_topk} per token"
    yield (
        "heads",
        f"{model.num_attention_heads} of size {model.kv_channels}, {model.num_query_groups} key and value heads",
    )
    tied = "with its own weights" if model.untie_embeddings_and_output_weights else "tied to the embedding"
    yield "vocabulary", f"{model.vocab_size} token ids, LM head {tied}"
    yield "positions", f"{model.max_position_embeddings}, base {model.rotary_base:.15g}{_rope_scaling(model)}"
    if model.rope_local_base_freq is not None:
        yield "positions in windows", f"base {model.rope_local_base_freq:.15g}"
    if any(layers_without_rope(model)):
        yield "layers without rotary embedding", str(sum(layers_without_rope(model)))
    if model.sliding_window:
        windowed = sum(window is not None for window in layer_windows(model))
        in_layers = "" if windowed == model.num_layers else f" in {windowed} layers"
        yield "sliding window", f"{model.sliding_window}{in_layers}"


def _rope_scaling(model: ModelConfig) -> str:
    if model.use_rope_scaling:
        return f", llama3 scaling by {model.rope_scaling_factor:g}"
    if model.rotary_seq_len_interpolation_factor is not None:
        return f", linear scaling by {model.rotary_seq_len_interpolation_factor:g}"
    return ""


def _stored_rows(stored: dict[str, TensorInfo]) -> Iterator[Row]:
    parameters = sum(torch.Size(info.shape).numel() for info in stored.values())
    dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in stored.values()})
    nbytes = sum(info.nbytes for info in stored.values())
    yield "parameters", f"{parameters:,}"
    yield "dtype", f"{', '.join(dtypes)}; {nbytes / 1e9:.3f} GB"


def _head(described: ModelDescription) -> str:
    latent = described.latent
    if latent is None:
        return "none"
    if latent["latent_mode"] == "continuous":
        return "continuous control"
    names = "with names" if described.code_names else "without names"
    # Heads written before there was a choice are amortized.
    is_exact = latent.get("latent_inference") == "exact"
    posterior = "exact inference, no posterior network" if is_exact else f"posterior reads {latent['posterior_input']}"
    return f"{latent['codebook_size']} codes {names}, {posterior}"


def _run_rows(description: dict[str, Any]) -> Iterator[Row]:
    parallel_layout = description.get("layout")
    if parallel_layout:
        unusual = [f"{name} {value}" for name, value in parallel_layout.items() if value not in (None, False, 1)]
        yield "written by", ", ".join(unusual)
    run = description.get("run")
    if run:
        yield "step", f"{run['iteration']} of {run['train_iters']}, {run['consumed_samples']} pairs seen"
