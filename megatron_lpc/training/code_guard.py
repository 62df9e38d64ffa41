"""The guard over the codes of a run: one line when they collapse, with the option to change; one when they recover.

It reads the metrics of the steps and nothing else, so that the same history gives the same lines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal

from megatron_lpc.config import Config, all_options
from megatron_lpc.losses.collapse import CodeUse

State = Literal["active", "collapsed", "constant", "little", "excessive"]

_FEWEST_PAIRS = 8
"""Pairs per step below which the information of a step is too low to read: of one pair it is always 0."""
_ENOUGH_KL = 0.75
"""Fraction of ln K that the KL must fall below before it counts as excessive no longer."""

_SLOW = 2e-3
"""Rates of the head below which it may still be where it started when the run ends."""
_FAST = 3e-2
"""`latent_lr` above which, under exact inference, the prior may settle on one code before the codes differ."""


class CodeGuard:
    """Reads the metrics of a run of `train_iters` steps, one step after the other.

    It is silent during the warm-up of learning rate and KL weight and a tenth of the steps (20 to 200) after it. Then
    it reads averages over a window of a twentieth of the steps (8 to 100). A state is told once, and again only after
    it has changed; between collapse (0.5% of ln K) and recovery (5%) nothing changes. Codes that tell little, but more
    than nothing, are told in the second half of the run only, for they may be on their way.
    """

    def __init__(self, config: Config, train_iters: int) -> None:
        training, latent = config.training, config.latent
        self._config = config
        self._half_time = train_iters // 2
        warmup = max(round(training.lr_warmup_fraction * train_iters), latent.kl_warmup_iters)
        self._quiet = warmup + min(200, max(20, train_iters // 10))
        self._window: deque[tuple[int, CodeUse]] = deque(maxlen=min(100, max(8, train_iters // 20)))
        self._told: State = "active"
        self._reads = latent.latent_mode == "lpc" and training.global_batch_size >= _FEWEST_PAIRS

    def step(self, iteration: int, metrics: Mapping[str, float]) -> str | None:
        """What is to be told after step `iteration` (the first is 1), if anything. Steps without figures do not count.

        Args:
            metrics: those of `finish_metrics`.
        """
        use = CodeUse.of(metrics, self._config.latent.codebook_size)
        if not self._reads or use is None or iteration <= self._quiet:
            return None
        self._window.append((iteration, use))
        if len(self._window) < (self._window.maxlen or 0):
            return None
        mean = _mean([use for _, use in self._window])
        first = self._window[0][0]
        state = _state(mean, self._told, is_late=first > self._half_time)
        if state == self._told:
            return None
        self._told = state
        self._window.clear()
        return f"{_sentence(state, self._config)} (steps {first} to {iteration}: {mean.figures})"


def guard_lines(config: Config, train_iters: int, history: Iterable[tuple[int, Mapping[str, float]]]) -> list[str]:
    """All that a guard tells over a history of (step, metrics)."""
    guard = CodeGuard(config, train_iters)
    told = (guard.step(iteration, metrics) for iteration, metrics in history)
    return [line for line in told if line is not None]


def _mean(uses: list[CodeUse]) -> CodeUse:
    return CodeUse(
        kl=sum(use.kl for use in uses) / len(uses),
        information=sum(use.information for use in uses) / len(uses),
        num_codes=uses[0].num_codes,
    )


def _state(use: CodeUse, told: State, is_late: bool) -> State:
    """The state of a window, after the state that was told last."""
    if use.says_little and told in ("collapsed", "constant", "little"):
        return told
    if use.says_nothing:
        return "collapsed"
    if use.is_constant:
        return "constant"
    if use.says_little and is_late:
        return "little"
    if use.is_excessive or (told == "excessive" and use.kl_fraction > _ENOUGH_KL):
        return "excessive"
    return "active"


def _sentence(state: State, config: Config) -> str:
    if state == "active":
        return "codes are active again"
    texts = {
        "collapsed": "the codes have collapsed; try",
        "constant": "one code takes everything; try",
        "little": "the codes tell little about a pair; try",
        "excessive": "the posterior strays from the prior, with a KL above ln K; try",
    }
    return f"warning: {texts[state]} {_advice(state, config)}"


def _advice(state: State, config: Config) -> str:
    """The first option of a list that this run sets otherwise, and that has an effect in it."""
    latent, training = config.latent, config.training
    is_exact = latent.latent_inference == "exact"
    of_collapse = {
        "posterior_context": (is_exact and config.data.group_column is not None and not latent.posterior_context, "7"),
        "posterior_input": (latent.posterior_input in ("concat", "bilinear"), "difference"),
        "kl_weight": (latent.kl_weight > 0.1, f"below {latent.kl_weight:g}"),
        "exact_temperature": (
            latent.exact_temperature > 0.1 and not latent.posterior_context,
            f"below {latent.exact_temperature:g}",
        ),
        "latent_lr": (
            training.latent_lr > _FAST if is_exact else training.latent_lr < _SLOW,
            f"{'below' if is_exact else 'above'} {training.latent_lr:g}",
        ),
        "codebook_lr": (training.codebook_lr < _SLOW, f"above {training.codebook_lr:g}"),
        "codebook_init_std": (latent.codebook_init_std < 0.1, f"above {latent.codebook_init_std:g}"),
    }
    of_excess = {
        "prior_mix_final": (latent.prior_mix_final > 0, f"below {latent.prior_mix_final:g}"),
        "kl_weight": (True, f"above {latent.kl_weight:g}"),
    }
    of_constant = {"usage_entropy_weight": (True, f"above {latent.usage_entropy_weight:g}")}
    lists = {"excessive": of_excess, "constant": of_constant}
    for name, (applies, value) in lists.get(state, of_collapse).items():
        option = all_options()[name]
        if applies and not any(rule.applies(config) for rule in option.idle):
            return f"{option.flag} {value}"
    # An exact run has no network but the prior, which must not be faster than the codes.
    name, rate = ("codebook_lr", training.codebook_lr) if is_exact else ("latent_lr", training.latent_lr)
    return f"{all_options()[name].flag} above {rate:g}"
