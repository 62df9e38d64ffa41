"""Preference pairs: files in, micro-batches out."""
