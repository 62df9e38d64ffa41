"""Options that would have no effect: set away from their default they are refused, never silently ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron_lpc.config.options import all_options, changed_options, shown
from megatron_lpc.config.schema import Config

_SAMPLING = (
    "relaxation",
    "gumbel_tau",
    "gumbel_tau_final",
    "gumbel_tau_schedule",
    "prior_mix_initial",
    "prior_mix_final",
)
_KL = ("kl_weight", "kl_warmup_iters", "kl_free_bits", "usage_entropy_weight")
_HEAD = ("codebook_size", "codebook_init_std", "latent_mlp_hidden_size", "posterior_input", "latent_lr")
_RECOMPUTE = ("recompute_method", "recompute_num_layers")
_REFERENCE = ("reference", "reference_cache", "reference_load", "reference_offload")


@dataclass(frozen=True)
class _Idle:
    """`options` have no effect `when`; `reason` says why, and what would make them count."""

    options: tuple[str, ...]
    when: Callable[[Config], bool]
    reason: str


def _loss_not(*loss_types: str) -> Callable[[Config], bool]:
    return lambda c: c.loss.loss_type not in loss_types


# The first rule that fits an option is the one reported.
_RULES = (
    _Idle((*_SAMPLING, *_KL, *_HEAD), lambda c: c.latent.latent_mode == "none", "with --latent-mode none"),
    # The control takes the number of its parameters from the codebook, its width and the posterior, so those do count.
    _Idle(
        (*_SAMPLING, *_KL),
        lambda c: c.latent.latent_mode == "continuous",
        "with --latent-mode continuous: no noise, no KL",
    ),
    _Idle(
        ("gumbel_tau_final",),
        lambda c: c.latent.gumbel_tau_schedule == "constant",
        "with --gumbel-tau-schedule constant",
    ),
    _Idle(("gumbel_tau_schedule",), lambda c: c.latent.gumbel_tau_final is None, "without --gumbel-tau-final"),
    _Idle(("kl_warmup_iters", "kl_free_bits"), lambda c: c.latent.kl_weight == 0, "with --kl-weight 0"),
    _Idle(("label_smoothing", "robust"), _loss_not("dpo"), "unless --loss-type is dpo"),
    _Idle(("robust",), lambda c: c.loss.label_smoothing == 0, "without --label-smoothing above 0"),
    _Idle(("rpo_alpha",), _loss_not("dpo", "ipo"), "unless --loss-type is dpo or ipo"),
    _Idle(("simpo_gamma",), _loss_not("simpo"), "unless --loss-type is simpo"),
    _Idle(("ipo_length_average",), _loss_not("ipo"), "unless --loss-type is ipo"),
    _Idle(_REFERENCE, _loss_not("dpo", "ipo"), "unless --loss-type is dpo or ipo: the others have no reference"),
    _Idle(("reference_cache",), lambda c: c.loss.reference != "precomputed", "without --reference precomputed"),
    _Idle(("reference_offload",), lambda c: c.loss.reference != "online", "without --reference online"),
    _Idle(
        ("moe_router_topk", "moe_router_pre_softmax"), lambda c: c.model.num_experts is None, "without --num-experts"
    ),
    _Idle(("rope_scaling_factor",), lambda c: not c.model.use_rope_scaling, "without --use-rope-scaling"),
    _Idle(
        ("recompute_method", "recompute_num_layers"),
        lambda c: c.parallel.recompute_granularity != "full",
        "without --recompute-granularity full",
    ),
    _Idle(("shuffle_buffer_size",), lambda c: not c.data.streaming, "without --streaming"),
    _Idle(("micro_batch_size",), lambda c: c.data.pack_to is not None, "with --pack-to, which decides"),
    _Idle(("num_train_epochs",), lambda c: c.training.train_iters is not None, "with --train-iters, which decides"),
    _Idle(("min_lr",), lambda c: c.training.lr_decay_style == "constant", "with --lr-decay-style constant"),
    _Idle(("save_interval", "keep_last", "async_save"), lambda c: c.checkpoint.save is None, "without --save"),
    _Idle(("eval_interval", "eval_iters"), lambda c: not c.data.valid_data, "without --valid-data"),
)


def idle_options(config: Config) -> Iterator[str]:
    """A sentence for every option that is set away from its default and has no effect beside the others."""
    changed = changed_options(config)
    for rule in _RULES:
        for name in rule.options:
            if name in changed and rule.when(config):
                changed.remove(name)
                option = all_options()[name]
                value, default = getattr(getattr(config, option.section), name), option.default
                yield f"{option.flag} = {shown(value)}: has no effect {rule.reason}; leave it at its default, {shown(default)}"
