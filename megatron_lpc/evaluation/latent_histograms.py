"""How the latents of an evaluation are distributed: which codes are used, and how large codes and latents are.

Shape legend: P pairs, K codes, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_lpc.evaluation.pair_table import PairTable
from megatron_lpc.training.histogram import Histogram, histogram_of_codes, histogram_of_values


def latent_histograms(table: PairTable, codes: Tensor | None) -> dict[str, Histogram]:
    """Of a scored data set, by name; none where the model has neither codes nor Gaussian latents.

    `lpc/usage/posterior`, `lpc/usage/prior`: how many pairs each code explains, its weight summed over pairs.
    `lpc/first_choice`: pairs for which each code is the posterior's most probable one.
    `lpc/largest_weight/*`: per pair the weight of its most probable code, 1/K to 1; 1 is one code for the pair.
    `lpc/codebook_norm`: Euclidean norms of the K codes, as they are added to hidden states.
    `lpc/z_norm/*`: norms of the latents of pairs, mixed by the posterior or the prior.
    `lpc/mean_norm/posterior`: norms of the means of Gaussian posteriors.

    Args:
        codes: [K, H] fp64 what each code adds to a hidden state; None where there are no codes.
    """
    if table.latent_mean.size(1):
        return {"lpc/mean_norm/posterior": histogram_of_values(table.latent_mean.norm(dim=-1))}
    if codes is None:
        return {}
    found = {"lpc/codebook_norm": histogram_of_values(codes.norm(dim=-1))}
    products = codes @ codes.T  # |w C|^2 = w (C C^T) w^T: without a vector [H] for each pair.
    for name, logits in (("posterior", table.posterior_logits), ("prior", table.prior_logits)):
        weights = logits.softmax(dim=-1)
        z_norms = ((weights @ products) * weights).sum(dim=-1).clamp(min=0).sqrt()
        found |= {
            f"lpc/usage/{name}": histogram_of_codes(weights.sum(dim=0)),
            f"lpc/largest_weight/{name}": histogram_of_values(weights.amax(dim=-1)),
            f"lpc/z_norm/{name}": histogram_of_values(z_norms),
        }
    first = torch.bincount(table.posterior_logits.argmax(dim=-1), minlength=len(codes))
    return found | {"lpc/first_choice": histogram_of_codes(first)}
