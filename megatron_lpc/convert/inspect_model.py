"""What a folder holds, in a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.table import Table

from megatron_lpc.convert.opened import OpenedModel


def inspection_table(path: Path, model: OpenedModel) -> Table:
    """Family, sizes, dtype, layout, head and step of a model."""
    table = Table(title=str(path), title_justify="left", show_header=False)
    for row in _rows(model):
        table.add_row(*row)
    return table


def _rows(opened: OpenedModel) -> Iterator[tuple[str, str]]:
    described, model = opened.described, opened.described.model
    yield "format", opened.kind
    yield "family", f"{described.family.model_type} ({described.family.architecture})"
    yield "layers, hidden, MLP", f"{model.num_layers}, {model.hidden_size}, {model.ffn_hidden_size}"
    if model.num_experts is not None:
        yield "experts", f"{model.num_experts} in a layer, {model.moe_router_topk} for each token"
    yield (
        "heads",
        f"{model.num_attention_heads} of width {model.kv_channels}, {model.num_query_groups} key and value heads",
    )
    tied = "with weights of its own" if model.untie_embeddings_and_output_weights else "tied to the embedding"
    yield "vocabulary", f"{model.vocab_size} words, LM head {tied}"
    yield "positions", f"{model.max_position_embeddings}, base {model.rotary_base}{_rope(opened)}"
    if model.sliding_window:
        yield "sliding window", str(model.sliding_window)
    yield "parameters", f"{sum(torch.Size(info.shape).numel() for info in opened.stored.values()):,}"
    kinds = sorted({str(info.dtype).removeprefix("torch.") for info in opened.stored.values()})
    yield "dtype", f"{', '.join(kinds)}; {sum(info.nbytes for info in opened.stored.values()) / 1e9:.3f} GB"
    yield "LPC head", _head(opened)
    layout = opened.run.get("layout")
    if layout:
        yield (
            "written by",
            ", ".join(f"{name} {value}" for name, value in layout.items() if value not in (None, False, 1)),
        )
    run = opened.run.get("run")
    if run:
        yield "step", f"{run['iteration']} of {run['train_iters']}, {run['consumed_samples']} pairs seen"
    yield "tokenizer", opened.tokenizer or "none"


def _rope(opened: OpenedModel) -> str:
    model = opened.described.model
    if model.use_rope_scaling:
        return f", llama3 scaling by {model.rope_scaling_factor:g}"
    factor = model.rotary_seq_len_interpolation_factor
    return "" if factor is None else f", linear scaling by {factor:g}"


def _head(opened: OpenedModel) -> str:
    latent = opened.described.latent
    if latent is None:
        return "none"
    if latent["latent_mode"] == "continuous":
        return "continuous control"
    names = "named" if opened.described.code_names else "without names"
    return f"{latent['codebook_size']} codes {names}, posterior reads {latent['posterior_input']}"
