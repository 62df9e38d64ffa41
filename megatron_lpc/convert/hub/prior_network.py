"""The network of a head that reads a prompt, as transformers and servers run it.

Shape legend: B prompts, H hidden size, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def normalized(hidden: Tensor) -> Tensor:
    """[B, H] hidden states with a root mean square of 1."""
    return nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6)


def prior_probabilities(prior: nn.Module, h_x: Tensor) -> Tensor:
    """[B, K] fp32 p(z|x).

    Args:
        prior: an `mlp`.
        h_x: [B, H] hidden states at the last token of each prompt, after the final norm.
    """
    probabilities: Tensor = prior(normalized(h_x)).float().softmax(-1)
    return probabilities


def prior_network(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """An `mlp` in fp32 of its tensors by name, `0.weight` and so on."""
    hidden, inputs = tensors["0.weight"].shape
    network = mlp(inputs, hidden, len(tensors["2.weight"]))
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return network.requires_grad_(False)
