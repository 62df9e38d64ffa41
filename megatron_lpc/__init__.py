"""Latent Preference Coding on Megatron-core."""
