"""A map of prompts: near each other where their hidden states are."""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_lpc.command_line import UserError
from megatron_lpc.evaluation.report.options import MapMethod
from megatron_lpc.evaluation.report.scored_pairs import ScoredPairs

SEED = 0
LEAST_FOR_NEIGHBORS = 10
"""Prompts below which there are no neighborhoods to keep: PCA then, whatever was asked for."""
_PRINCIPAL = 50
"""Principal components that t-SNE and UMAP begin with, as is usual: distances in more directions are mostly noise."""
_PACKAGES = {"tsne": ("sklearn", "scikit-learn"), "umap": ("umap", "umap-learn")}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A pair at the place of its prompt; pairs of one prompt stand around it."""

    x: float
    """In [0, 1], as y."""
    y: float
    code: int
    group: str | None
    source: str | None


@dataclass(frozen=True, kw_only=True)
class PromptMap:
    """Pairs that were drawn among all, by prompt."""

    method: MapMethod
    prompts: int
    points: list[Point]


def check_installed(method: MapMethod | None) -> None:
    """Raise a UserError where the package of a method is missing."""
    if method in _PACKAGES and importlib.util.find_spec(_PACKAGES[method][0]) is None:
        raise UserError(
            f"--map {method}: the package `{_PACKAGES[method][1]}` is not installed; `pip install "
            f"{_PACKAGES[method][1]}`, or take --map pca"
        )


def prompt_map(scored: ScoredPairs, method: MapMethod | None) -> PromptMap:
    """Of the pairs that `ScoredPairs.on_map` names.

    Args:
        method: None for t-SNE where scikit-learn is installed, else PCA.
    """
    numbers, first = _distinct(scored.prompts[scored.on_map])
    states = scored.prompt_states[first]
    if method is None:
        method = "pca" if importlib.util.find_spec("sklearn") is None else "tsne"
    if len(states) < LEAST_FOR_NEIGHBORS:
        method = "pca"
    places = _unit_square(_laid_out(states, method))
    codes, points = scored.codes, []
    met: defaultdict[int, int] = defaultdict(int)
    totals = torch.bincount(numbers).tolist()
    for place, number in zip(scored.on_map.tolist(), numbers.tolist(), strict=True):
        x, y = places[number].tolist()
        if totals[number] > 1:
            angle = 2 * math.pi * met[number] / totals[number]
            x, y = x + 0.008 * math.cos(angle), y + 0.008 * math.sin(angle)
        met[number] += 1
        points.append(
            Point(
                x=round(x, 4),
                y=round(y, 4),
                code=int(codes[place]),
                group=None if scored.support is None else scored.support.groups[place],
                source=None if scored.sources is None else scored.sources.names[place],
            )
        )
    return PromptMap(method=method, prompts=len(states), points=points)


def _distinct(prompts: Tensor) -> tuple[Tensor, list[int]]:
    """[M] which of the distinct prompts each is, and where each of these comes first."""
    numbers: dict[int, int] = {}
    of_each = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts.tolist()]
    first: dict[int, int] = {}
    for place, number in enumerate(of_each):
        first.setdefault(number, place)
    return torch.tensor(of_each), list(first.values())


def _laid_out(states: Tensor, method: MapMethod) -> Tensor:
    """[M, 2] of hidden states [M, H]."""
    if method == "pca":
        return principal_components(states, 2)
    components = principal_components(states, _PRINCIPAL).numpy()
    layout: Any
    if method == "tsne":
        from sklearn.manifold import TSNE  # Imported late: it takes a second.

        perplexity = min(30.0, (len(states) - 1) / 3)
        layout = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=SEED)
    else:
        from umap import UMAP

        layout = UMAP(n_components=2, n_neighbors=min(15, len(states) - 1), random_state=SEED)
    return torch.from_numpy(layout.fit_transform(components)).double()


def principal_components(states: Tensor, count: int) -> Tensor:
    """[M, min(count, M, H)] coordinates of [M, H] along the directions of most variance; at least two columns.

    By the products of states with each other, M x M, as there are fewer prompts than a large model has directions. The
    sign of each is such that its largest coordinate is positive.
    """
    centered = states.double() - states.double().mean(0)
    values, vectors = torch.linalg.eigh(centered @ centered.T)
    order = values.argsort(descending=True)[:count]
    coordinates = vectors[:, order] * values[order].clamp(min=0).sqrt()
    largest = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))
    coordinates = coordinates * torch.where(largest < 0, -1.0, 1.0)
    missing = 2 - coordinates.size(1)
    return torch.nn.functional.pad(coordinates, (0, max(0, missing)))


def _unit_square(places: Tensor) -> Tensor:
    """[M, 2] with one scale for both axes."""
    low = places.min(0).values
    extent = float((places.max(0).values - low).max()) or 1.0
    return (places - low) / extent
