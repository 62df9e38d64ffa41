"""Latent Preference Coding on Megatron-core."""

# Whatever part is used first: it must come before megatron-core.
import megatron_lpc.platform  # noqa: F401

__version__ = "0.1.0"
