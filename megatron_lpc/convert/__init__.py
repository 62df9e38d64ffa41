"""Hugging Face weights in, aligned models out: the one part of the project that knows Hugging Face's names."""
