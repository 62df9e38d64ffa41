"""What a server needs beside the stock backbone: the codes as a table of logits, the prior, and logits processors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_lpc.convert.decoder import EMBEDDING, LM_HEAD
from megatron_lpc.convert.description import ModelDescription
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.head import HEAD_PREFIX
from megatron_lpc.convert.hub.latent_table import LATENTS_FOLDER, PACKAGE, PRIOR_LATENTS, TABLE_FILE
from megatron_lpc.convert.hub.saved_latent import codes_fingerprint
from megatron_lpc.convert.megatron_folder import MegatronFolder

_NAMES = (
    "saved_latent",
    "prior_network",
    "latent_table",
    "vllm_model",
    "vllm_v1",
    "vllm_v2",
    "sglang_latents",
    "logit_bias",
    "request",
)
_FILES = [Path(__file__).parent / "hub" / f"{name}.py" for name in _NAMES]
_PLUGIN = {
    "METADATA": f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1\n",
    "entry_points.txt": f"[vllm.general_plugins]\n{PACKAGE} = {PACKAGE}.vllm_model:register\n",
}
"""Files of a folder beside the package, by which vLLM finds its model where the export is on PYTHONPATH."""
_ROWS = 8192
"""Of the LM head at a time."""


def check_servable(folder: Path, described: ModelDescription) -> None:
    """Refuse a model whose latents are no sum of logits.

    Raises:
        ConversionError: it has no codes, its logits have a soft cap, or a code has a name that means a latent.
    """
    mode = described.latent["latent_mode"] if described.latent else "none"
    if mode != "lpc":
        raise ConversionError(f"{folder}: --for-serving needs codes, and its latent_mode is {mode}")
    if described.model.final_logit_softcapping is not None:
        raise ConversionError(
            f"{folder}: --for-serving adds to logits what the codes add before the soft cap of this family, which is "
            "not the same; serve the export with its head, through transformers"
        )
    for name in described.code_names or []:
        if name in PRIOR_LATENTS:
            raise ConversionError(
                f"{folder}: a code has the name {name}, which means a latent of the prior in requests"
            )


def write_serving(folder: Path, source: MegatronFolder, described: ModelDescription) -> None:
    """Write the table, the codebook and the prior network, and the package of logits processors.

    Args:
        folder: that of the export of the backbone.
        source: the checkpoint.
        described: the model with its head.
    """
    assert described.latent is not None
    head = {
        name.removeprefix(HEAD_PREFIX): _whole(source, name) for name in source.tensors if name.startswith(HEAD_PREFIX)
    }
    codes = (head["code_unit"] * head["codebook"]).float()
    tensors = {"table": _table(source, described, codes), "codebook": codes}
    tensors |= {name: tensor for name, tensor in head.items() if name.startswith("prior.")}
    about: dict[str, Any] = {
        "kind": "megatron_lpc table of codes",
        "codes": codes_fingerprint(head["codebook"], head["code_unit"]),
        "code_names": described.code_names,
    }
    package = folder / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text('"""Latents of requests, for servers."""\n', encoding="utf-8")
    for file in _FILES:
        shutil.copy(file, package / file.name)
    plugin = folder / f"{PACKAGE}-1.dist-info"
    plugin.mkdir()
    for name, text in _PLUGIN.items():
        (plugin / name).write_text(text, encoding="utf-8")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / TABLE_FILE, metadata={"lpc": json.dumps(about)})
    (folder / LATENTS_FOLDER).mkdir()


def _table(source: MegatronFolder, described: ModelDescription, codes: Tensor) -> Tensor:
    """[K, V] fp32 what each code adds to the logits, without padding of the vocabulary."""
    name = LM_HEAD.name if described.model.untie_embeddings_and_output_weights else EMBEDDING.name
    assert described.model.vocab_size is not None
    table = torch.empty(len(codes), described.model.vocab_size)
    for start in range(0, described.model.vocab_size, _ROWS):
        stop = min(start + _ROWS, described.model.vocab_size)
        rows = source.read(name, (start, 0), (stop - start, codes.size(1)))
        table[:, start:stop] = codes @ rows.float().t()
    return table


def _whole(source: MegatronFolder, name: str) -> Tensor:
    shape = source.tensors[name].shape
    return source.read(name, (0,) * len(shape), shape)
