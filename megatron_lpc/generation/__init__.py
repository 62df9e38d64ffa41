"""Responses of an exported model under several latents, by transformers' `generate`, and how they differ in style."""
