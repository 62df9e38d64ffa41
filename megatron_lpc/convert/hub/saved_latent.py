"""A latent in a file: mixture weights of the codes, such as those of one annotator, and which codes they are of.

The file is safetensors: `weights` [K] fp64, where they have one `interval` [2, K] fp64 (lower and upper bounds), and a
JSON object under the key `latent` of its metadata. The same latent gives the same bytes.

Shape legend: K codes, H hidden size.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_KIND = "megatron_lpc mixture of codes"
_KEY = "latent"
_SUM_TOLERANCE = 1e-3
_AGAIN = "make it with `python -m megatron_lpc.personalize --load RUN`"


@dataclass(frozen=True, kw_only=True)
class SavedLatent:
    """Mixture weights of codes, and what they are from."""

    weights: Tensor
    """[K] fp64, of sum 1."""
    interval: Tensor | None
    """[2, K] fp64, between which each weight lies with a probability of 95%; None where that is not known."""
    pairs: int
    """Labelled pairs that the weights are from."""
    posterior: str
    """How: `support` or `support_exact`, as in the reports of `megatron_lpc.evaluate`."""
    codes: str
    """`codes_fingerprint` of the codes that the weights are of."""


def codes_fingerprint(codebook: Tensor, code_unit: Tensor) -> str:
    """SHA-256 of a head's codes, rounded to bf16, so that a checkpoint and its exports in fp32 and bf16 have the same.

    Args:
        codebook: [K, H] of any dtype.
        code_unit: [1].
    """
    digest = hashlib.sha256(str(tuple(codebook.shape)).encode())
    for tensor in (codebook, code_unit):
        rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def write_latent(path: str | Path, latent: SavedLatent) -> None:
    """Write a file; an unfinished one may be left by an error."""
    about = {
        "kind": _KIND,
        "num_codes": len(latent.weights),
        "pairs": latent.pairs,
        "posterior": latent.posterior,
        "codes": latent.codes,
    }
    tensors = {"weights": latent.weights.double().contiguous()}
    if latent.interval is not None:
        tensors["interval"] = latent.interval.double().contiguous()
    # One key: safetensors writes several in no fixed order.
    save_file(tensors, path, metadata={_KEY: json.dumps(about)})


def read_latent(path: str | Path) -> SavedLatent:
    """Read what `write_latent` wrote.

    Raises:
        ValueError: there is no such file, or it is none of a latent.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a dict)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a saved latent ({error}); {_AGAIN}") from error
    if not isinstance(about, dict) or about.get("kind") != _KIND:
        raise ValueError(f"{path}: holds no saved latent; {_AGAIN}")
    try:
        latent = SavedLatent(
            weights=tensors["weights"],
            interval=tensors.get("interval"),
            pairs=about["pairs"],
            posterior=about["posterior"],
            codes=about["codes"],
        )
    except KeyError as error:
        raise ValueError(f"{path}: lacks {error}, the file is damaged; {_AGAIN}") from error
    if not _is_whole(latent, about.get("num_codes")):
        raise ValueError(f"{path}: its weights do not fit its description, the file is damaged; {_AGAIN}")
    return latent


def _is_whole(latent: SavedLatent, num_codes: object) -> bool:
    """Whether a latent that was read is one."""
    weights, interval = latent.weights, latent.interval
    if weights.shape != (num_codes,) or weights.dtype != torch.float64 or not bool((weights >= 0).all()):
        return False
    if interval is not None and (interval.shape != (2, num_codes) or not bool(interval.isfinite().all())):
        return False
    adds_up = abs(float(weights.sum()) - 1) < _SUM_TOLERANCE
    return adds_up and type(latent.pairs) is int and isinstance(latent.posterior, str) and isinstance(latent.codes, str)


def read_latent_of(path: str | Path, codebook: Tensor, code_unit: Tensor) -> SavedLatent:
    """Read a latent for the codes of a head; arguments as of `codes_fingerprint`.

    Raises:
        ValueError: it cannot be read, or is of other codes.
    """
    latent = read_latent(path)
    if len(latent.weights) != len(codebook):
        raise ValueError(
            f"{path}: has weights of {len(latent.weights)} codes, this model {len(codebook)}; {_AGAIN} of this model"
        )
    fingerprint = codes_fingerprint(codebook, code_unit)
    if latent.codes != fingerprint:
        raise ValueError(
            f"{path}: is of another model, or another step of its training (codes {latent.codes[:12]}, here "
            f"{fingerprint[:12]}); {_AGAIN} of this model"
        )
    return latent
