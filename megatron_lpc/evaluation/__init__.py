"""Evaluation: pairs scored under several latents, what the codes tell about groups, and accuracy by support sets.

`scoring` needs the model and its process groups; `pair_table`, `support`, `information` and `results` are pure
functions of the scores.
"""
