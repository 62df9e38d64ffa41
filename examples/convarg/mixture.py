"""What is there to gain from knowing the worker? A mixture of K logistic models of the votes, fitted by EM.

    python -m examples.convarg.mixture --data runs/convarg/fold-0 --codes 4 --output runs/convarg/fold-0/mixture.json

Each worker has one of K types, which all their votes share; a type weighs the features of a text (`features.py`). With
`--codes 1` it is one logistic model for all. Types are fitted to the votes of train.jsonl, and written as scores of
every argument, as `score.py` writes those of a trained model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.convarg.features import arguments, principal_components, surface
from examples.convarg.figures import Array
from examples.convarg.predictions import read_votes, sigmoid, softmax
from megatron_lpc.command_line import ArgumentParser, UserError, reports_errors
from megatron_lpc.files import write_json

STEPS = 30
"""Of EM."""
TO_ALL = 100.0
"""Precision of the weights of a type about those of all workers."""
NEWTON_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """K logistic models and how common they are."""

    weights: Array
    """[K, F] of each feature."""
    log_prior: Array
    """[K]."""


def fit(differences: Array, workers: Sequence[str], codes: int, precision: float, seed: int = 0) -> Mixture:
    """Maximum a posteriori by EM, the workers' types being unknown; each M step is one step of Newton.

    Args:
        differences: [P, F] features of the chosen argument less those of the rejected one.
        workers: [P] who voted.
        precision: of the weights of all workers about 0.
    """
    everyone = np.zeros(differences.shape[1])
    for _ in range(NEWTON_STEPS):
        everyone = _newton(differences, np.ones(len(differences)), everyone, np.zeros_like(everyone), precision)
    if codes == 1:
        return Mixture(weights=everyone[None], log_prior=np.zeros(1))
    _, worker = np.unique(np.array(workers), return_inverse=True)
    weights = everyone + np.random.default_rng(seed).normal(0, 0.3, (codes, len(everyone)))
    log_prior = np.full(codes, -np.log(codes))
    for _ in range(STEPS):
        of_votes = np.log(sigmoid(differences @ weights.T))
        evidence = np.stack([np.bincount(worker, of_type) for of_type in of_votes.T], axis=1) + log_prior
        types = softmax(evidence)
        log_prior = np.log(types.mean(0))
        weights = np.stack(
            [
                _newton(differences, of_type[worker], start, everyone, TO_ALL)
                for of_type, start in zip(types.T, weights, strict=True)
            ]
        )
    return Mixture(weights=weights, log_prior=log_prior)


def _newton(differences: Array, votes: Array, start: Array, center: Array, precision: float) -> Array:
    """One step from `start` towards the weights of a logistic model in which each row counts `votes` times."""
    right = sigmoid(differences @ start)
    gradient = differences.T @ (votes * (1 - right)) - precision * (start - center)
    curvature = (differences * (votes * right * (1 - right))[:, None]).T @ differences
    found: Array = start + np.linalg.solve(curvature + precision * np.eye(len(start)), gradient)
    return found


def features(data: Path, states: Path | None, components: int) -> dict[str, Array]:
    """Argument -> [F]; scaled, and directions found, by the arguments of train.jsonl alone."""
    rows = [json.loads(line) for line in (data / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {name: text for name, _, text in arguments(rows)}
    trained = {name for vote in read_votes(data / "train.jsonl") for name in (vote.chosen, vote.rejected)}
    is_training = np.array([name in trained for name in texts])
    table = np.array([surface(text) for text in texts.values()])
    table = (table - table[is_training].mean(0)) / (table[is_training].std(0) + 1e-6)
    if states is not None:
        means = json.loads(states.read_text(encoding="utf-8"))
        missing = [name for name in texts if name not in means]
        if missing:
            raise UserError(f"--states {states}: lacks {missing[0]}; let features.py read {data / 'all.jsonl'}")
        whole = np.array([means[name] for name in texts])
        table = np.concatenate([table, principal_components(whole, is_training, components)], axis=1)
    return dict(zip(texts, table, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    with reports_errors():
        parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--data", type=Path, required=True, help="folder of prepare.py")
        parser.add_argument("--codes", type=int, default=4, help="types of workers (4)")
        parser.add_argument("--states", type=Path, help="hidden states of features.py, beside the surface of a text")
        parser.add_argument("--components", type=int, default=20, help="principal components of them (20)")
        parser.add_argument("--precision", type=float, default=1.0, help="of the weights of all workers about 0 (1)")
        parser.add_argument("--seed", type=int, default=0, help="of the first types (0)")
        parser.add_argument("--output", type=Path, required=True, help="scores to write (JSON)")
        options = parser.parse_args(argv)
        if options.codes < 1:
            raise UserError(f"--codes {options.codes}: must be at least 1")
        votes = read_votes(options.data / "train.jsonl")
        table = features(options.data, options.states, options.components)
        differences = np.array([table[vote.chosen] - table[vote.rejected] for vote in votes])
        workers = [vote.worker for vote in votes]
        mixture = fit(differences, workers, options.codes, options.precision, options.seed)
        rewards = {name: mixture.weights @ of_text for name, of_text in table.items()}
        log_prior: list[float] = []
        if options.codes == 1:
            values = {name: {"logistic": found[0]} for name, found in rewards.items()}
        else:
            values = {name: {"codes": found.tolist()} for name, found in rewards.items()}
            log_prior = mixture.log_prior.tolist()
        debates = dict.fromkeys(name.rpartition("/")[0] for name in table)
        write_json(options.output, {"arguments": values, "log_prior": dict.fromkeys(debates, log_prior)})


if __name__ == "__main__":
    main()
