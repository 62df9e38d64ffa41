"""A small trained model with codes, exported with its head and for servers, and the latents that requests ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hub.modeling_lpc import LPCForCausalLM
from megatron_lpc.convert.hub.saved_latent import SavedLatent, codes_fingerprint, write_latent

CODES = 4
NAMES = ["dry", "warm", "brief", "verbose"]
MIXTURE = [0.1, 0.2, 0.3, 0.4]
PROMPT = [5, 6, 7, 8, 9, 10]
LATENTS: dict[str, tuple[Any, Any]] = {
    "none": (None, "none"),
    **{f"code {code}": (code, code) for code in range(CODES)},
    "name of a code": ("warm", 1),
    "weights": (MIXTURE, MIXTURE),
    "saved latent": ("ann", MIXTURE),
    "prior's mean": ("mean", "mean"),
    "prior's most probable code": ("argmax", "argmax"),
}
"""Kind -> what a request to a server says, and what transformers is told."""


def export_for_servers(config: str, folder: Path) -> None:
    """Train `run`; write `hf` with the head and `served` for servers, with a saved latent and one of another model."""
    from megatron_lpc.train import main as train

    flags = ["--codebook-size", str(CODES), "--codebook-init-std", "2", "--latent-lr", "0.02", "--train-iters", "4"]
    # vLLM's attention on a CPU wants heads of 32 or more.
    flags += ["--hidden-size", "64", "--num-attention-heads", "2", "--max-position-embeddings", "128"]
    train(["--config", config, *flags, "--save", str(folder / "run")])
    export_hf(folder / "run", folder / "hf", code_names=NAMES)
    export_hf(folder / "run", folder / "served", code_names=NAMES, form="serving")
    head = LPCForCausalLM.from_pretrained(folder / "hf").latent_head
    latent = SavedLatent(
        weights=torch.tensor(MIXTURE, dtype=torch.float64),
        interval=None,
        pairs=8,
        posterior="support",
        codes=codes_fingerprint(head.codebook, head.code_unit),
    )
    latents = folder / "served" / "latents"
    write_latent(latents / "ann.safetensors", latent)
    write_latent(latents / "other.safetensors", SavedLatent(**{**vars(latent), "codes": "0"}))
