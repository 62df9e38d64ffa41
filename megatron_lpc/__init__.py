"""Latent Preference Coding on Megatron-core."""

# Whatever part is used first: it must come before megatron-core.
import megatron_lpc.platform  # noqa: F401
