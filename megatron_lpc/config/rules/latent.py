"""Rules of the latent: its codes, and exact inference over them."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_lpc.config.schema import Config


def swap_guidance(config: Config) -> Iterator[str]:
    """Which codes mirror each other."""
    swap, codes = config.latent.swap_guidance_weight, config.latent.codebook_size
    if swap and codes % 2:
        yield (
            f"--swap-guidance-weight {swap:g}: codes mirror each other in couples, and --codebook-size {codes} is odd; "
            "make it even"
        )


def exact_inference(config: Config) -> Iterator[str]:
    """Exact inference sums likelihoods over codes; a term that is no likelihood of the pair's label has no place there.

    sft, which has none either, takes no latent at all: `run.objective`.
    """
    loss = config.loss
    if config.latent.latent_inference != "exact":
        return
    if loss.label_smoothing:
        yield (
            f"--label-smoothing {loss.label_smoothing}: with it the loss is not the likelihood of a label, which "
            "--latent-inference exact sums over codes; set it to 0, or --latent-inference amortized"
        )
    context = config.latent.posterior_context
    if context and loss.logps_algorithm == "pairwise":
        yield (
            f"--logps-algorithm pairwise: sees a chunk of pairs at a time, and under --posterior-context {context} "
            "exact inference needs all pairs of an episode at once; leave it at its default, auto"
        )
    if loss.robust:
        yield (
            "--robust: has no likelihood, which --latent-inference exact sums over codes; drop it, or set "
            "--latent-inference amortized"
        )
