"""What `--latent` names: the values that `generate` of an exported model takes, in the order of the columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_lpc.generation.open_export import OpenExport
from megatron_lpc.generation.options import GenerateOptions, GenerationError

_OF_PRIOR = {"prior": "mean", "prior_sample": "sample", "none": "none"}
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class NamedLatent:
    """A column."""

    name: str
    value: str | int | Sequence[float]
    """As `latent` of `LPCForCausalLM.generate`."""


def named_latents(
    options: GenerateOptions, opened: OpenExport, prior: Callable[[], Sequence[float]]
) -> list[NamedLatent]:
    """The latents that the options name.

    Args:
        prior: gives the [K] probabilities of the codes, averaged over the prompts; called where it is needed.

    Raises:
        GenerationError: the model has no such latent, a file is of another model, or two names are the same.
    """
    given = options.latents or ("prior" if opened.has_head else "none",)
    saved = {name: _saved(name, opened) for name in given if name.endswith(_SUFFIX)}
    latents: list[NamedLatent] = []
    for name in given:
        if name in saved:
            latents.append(NamedLatent(Path(name).stem, saved[name]))
        elif name == "codes":
            _check_codes(name, opened)
            weights: list[Sequence[float]] = list(saved.values()) or [prior()]
            latents += [NamedLatent(f"code:{code}", code) for code in active_codes(weights, options.max_codes)]
        else:
            latents.append(NamedLatent(name, _value(name, opened)))
    names = [latent.name for latent in latents]
    for name in names:
        if names.count(name) > 1:
            raise GenerationError(f"--latent: two are named `{name}`; rename a file, or leave one out")
    return latents


def active_codes(weights: Sequence[Sequence[float]], most: int) -> list[int]:
    """Codes that have more than the average weight 1/K in one of several mixtures [K]: the `most` used, ascending."""
    largest = torch.tensor(weights, dtype=torch.float64).amax(0)
    used = [code for code in largest.argsort(descending=True, stable=True).tolist() if largest[code] > 1 / len(largest)]
    return sorted(used[:most])


def _value(name: str, opened: OpenExport) -> str | int:
    if name == "none" or (name == "prior" and opened.has_head):
        return _OF_PRIOR[name]
    if name not in _OF_PRIOR and not name.startswith("code:"):
        raise GenerationError(f"--latent {name}: must be prior, prior_sample, code:K, codes, none or a {_SUFFIX} file")
    _check_codes(name, opened)
    if name in _OF_PRIOR:
        return _OF_PRIOR[name]
    number = name.removeprefix("code:")
    if not number.isdecimal() or int(number) >= opened.num_codes:
        raise GenerationError(f"--latent {name}: the codes are 0 to {opened.num_codes - 1}")
    return int(number)


def _saved(name: str, opened: OpenExport) -> list[float]:
    _check_codes(name, opened)
    try:
        return opened.model.load_latent(name)
    except ValueError as error:
        raise GenerationError(f"--latent {error}") from error


def _check_codes(name: str, opened: OpenExport) -> None:
    if not opened.num_codes:
        others = "prior and none" if opened.has_head else "none"
        raise GenerationError(f"--latent {name}: this model has no codes; its latents are {others}")
