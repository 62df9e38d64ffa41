"""What a server adds to logits: p (C W^T), with p the K mixture weights of a request and C W^T a table [K, V].

z is constant over a response and is added after the final norm, so logits(h + z) = logits(h) + p (C W^T), exact but for
rounding where logits have no soft cap. A server then needs the stock backbone, the table, and K numbers per request.

Shape legend: K codes, V vocabulary size.
"""

from __future__ import annotations

import json
import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .prior_network import prior_network, prior_probabilities
from .saved_latent import read_latent

PACKAGE = "lpc_serving"
TABLE_FILE = f"{PACKAGE}/lpc_latent.safetensors"
"""Not beside the weights, where servers take every file of this ending for some of them."""
LATENTS_FOLDER = "latents"
"""Saved latents that requests may name."""
REQUEST_KEY = "lpc_latent"
"""Of the extra arguments of a request."""
PRIOR_LATENTS = ("mean", "argmax")
"""What a request may ask for that the prior infers from its prompt."""
_PRIOR_PREFIX = "prior."
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_SUM_TOLERANCE = 1e-3


class LatentTable:
    """The table of an export, and what requests may ask for."""

    def __init__(self, folder: str | Path) -> None:
        """
        Args:
            folder: written by `convert_hf.py export --for-serving`.

        Raises:
            ValueError: it holds no table.
        """
        self._folder = Path(folder)
        file = self._folder / TABLE_FILE
        if not file.exists():
            raise ValueError(f"{file}: is missing; make the folder with `convert_hf.py export --for-serving`")
        try:
            with safe_open(file, framework="pt") as tensors:
                about = json.loads((tensors.metadata() or {}).get("lpc", "null"))
                self.values: Tensor = tensors.get_tensor("table")
                names = [name for name in tensors.keys() if name.startswith(_PRIOR_PREFIX)]  # noqa: SIM118 (no dict)
                prior = {name.removeprefix(_PRIOR_PREFIX): tensors.get_tensor(name) for name in names}
            self._prior = prior_network(prior)
        except (OSError, SafetensorError, LookupError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(f"{file}: cannot be read ({said}); export the model again") from error
        if not isinstance(about, dict) or not isinstance(about.get("codes"), str) or self.values.dim() != 2:
            raise ValueError(f"{file}: is no table of codes; export the model again")
        code_names = about.get("code_names") or []
        if not isinstance(code_names, list) or not all(isinstance(name, str) for name in code_names):
            raise ValueError(f"{file}: its names of codes are no list of texts; export the model again")
        self.code_names: list[str] = code_names
        self._codes: str = about["codes"]

    values: Tensor
    """[K, V] fp32."""

    def latent_of(self, arguments: dict[str, Any] | None) -> Tensor | str | None:
        """The latent that the extra arguments of a request ask for.

        `lpc_latent` is a list of K weights, the number or the name of a code, the name of a saved latent, the file
        NAME.safetensors in the folder `latents` of the export, or one of `PRIOR_LATENTS`.

        Returns:
            [K] fp32 mixture weights; one of `PRIOR_LATENTS`; None for the policy without a latent.

        Raises:
            ValueError: it is none of these; the message is meant for who has sent the request.
        """
        wanted = (arguments or {}).get(REQUEST_KEY)
        if wanted is None:
            return None
        if isinstance(wanted, str):
            return wanted if wanted in PRIOR_LATENTS else self._named(wanted)
        if isinstance(wanted, int) and not isinstance(wanted, bool):
            return self._code(wanted)
        if isinstance(wanted, list):
            return self._mixture(wanted)
        raise ValueError(f"{REQUEST_KEY} must be weights, a code or a name, got {type(wanted).__name__}")

    def weights_of(self, arguments: dict[str, Any] | None) -> Tensor | None:
        """As `latent_of`, for servers that show no hidden states: [K] fp32, or None without a latent.

        Raises:
            ValueError: also for `PRIOR_LATENTS`.
        """
        latent = self.latent_of(arguments)
        if isinstance(latent, str):
            raise ValueError(f"{REQUEST_KEY}: {latent!r} needs the prompt, which only vLLM's V1 engine shows")
        return latent

    def inferred(self, latents: list[str], h_x: Tensor) -> Tensor:
        """[B, K] fp32 mixture weights that the prior infers.

        Args:
            latents: one of `PRIOR_LATENTS` for each of B prompts.
            h_x: [B, H] hidden states at the last token of each prompt, after the final norm.
        """
        self._prior.to(h_x.device)
        prior = prior_probabilities(self._prior, h_x.float())
        most_probable = torch.nn.functional.one_hot(prior.argmax(-1), prior.size(-1)).to(prior)
        takes_mean = torch.tensor([latent == "mean" for latent in latents], device=prior.device)
        return torch.where(takes_mean[:, None], prior, most_probable)

    def _named(self, name: str) -> Tensor:
        if name in self.code_names:
            return self._code(self.code_names.index(name))
        # Names of requests never lead out of the folder.
        file = self._folder / LATENTS_FOLDER / f"{name}.safetensors"
        if not _NAME.fullmatch(name) or not file.is_file():
            raise ValueError(f"{REQUEST_KEY}: there is no code and no saved latent of the name {name[:100]!r}")
        latent = read_latent(file)
        if latent.codes != self._codes:
            raise ValueError(f"{REQUEST_KEY}: the saved latent {name!r} is of another model")
        return latent.weights.float()

    def _code(self, number: int) -> Tensor:
        if not 0 <= number < len(self.values):
            raise ValueError(f"{REQUEST_KEY}: must be a code from 0 to {len(self.values) - 1}, got {number}")
        weights = torch.zeros(len(self.values))
        weights[number] = 1
        return weights

    def _mixture(self, weights: list[Any]) -> Tensor:
        count = len(self.values)
        if len(weights) != count:
            raise ValueError(f"{REQUEST_KEY}: must be {count} weights, one per code, got {len(weights)}")
        numbers = [float(each) for each in weights if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(numbers) != count or not all(math.isfinite(each) and each >= 0 for each in numbers):
            raise ValueError(f"{REQUEST_KEY}: weights must be finite numbers of at least 0")
        if abs(sum(numbers) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"{REQUEST_KEY}: weights must add up to 1, got {sum(numbers):.6g}")
        return torch.tensor(numbers)


@cache
def table_of_environment() -> LatentTable:
    """That of the folder which the environment variable LPC_EXPORT names.

    Raises:
        ValueError: the variable is unset, or the folder holds no table.
    """
    folder = os.environ.get("LPC_EXPORT")
    if not folder:
        raise ValueError("LPC_EXPORT is unset: name the folder of `convert_hf.py export --for-serving`")
    return LatentTable(folder)
