"""Defaults of the latent that follow from the data: where it tells groups, codes are learned from episodes.

A label has two values, so two codes explain any single pair, whoever labelled it, and codes of single pairs cannot tell
more than two kinds of annotator apart. Several pairs of one annotator can (EM-DPO, arXiv 2510.15716), under exact
inference without a posterior network that has to learn first which pairs belong together.
"""

from __future__ import annotations

from typing import Any

EPISODE_CONTEXT = 7
"""`posterior_context` where groups are known: episodes of 8 pairs, as many as a support set has by default."""


def with_group_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Option name -> value of what the user set, with the defaults that a group column brings; what is set counts.

    A stream, in which the pairs of a group cannot be found, has no episodes, and plain objectives have no codes. A
    Gaussian latent is learned from episodes too.
    """
    mode = values.get("latent_mode", "lpc")
    if mode not in ("lpc", "gaussian") or values.get("group_column") is None or values.get("streaming"):
        return values
    values = {"posterior_context": EPISODE_CONTEXT} | values
    if mode == "gaussian":
        return values
    return {"latent_inference": "exact" if values["posterior_context"] else "amortized"} | values
