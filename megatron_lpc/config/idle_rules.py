"""When options have no effect. A rule is defined here once; the fields that it concerns name it in the schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from megatron_lpc.config.data_formats import RANKED_FORMATS, WITHOUT_CHOSEN_COLUMN
from megatron_lpc.config.metadata import IdleRule
from megatron_lpc.config.objectives import OBJECTIVES_WITH_REFERENCE

if TYPE_CHECKING:
    from megatron_lpc.config.schema import Config


def _loss_not(*loss_types: str) -> Callable[[Config], bool]:
    return lambda config: config.loss.loss_type not in loss_types


NO_ATTENTION_MASK = IdleRule(
    "without --pack-to, --share-prompt, --sliding-window or --attn-logit-softcapping, which need FlexAttention",
    lambda config: (
        config.data.pack_to is None
        and not config.data.share_prompt
        and config.model.sliding_window is None
        and config.model.attn_logit_softcapping is None
    ),
)
TE_ATTENTION = IdleRule(
    "with --transformer-impl transformer_engine, which has its own attention",
    lambda config: config.model.transformer_impl == "transformer_engine",
)
NO_EXPERTS = IdleRule("without --num-experts", lambda config: config.model.num_experts is None)
NO_FP8 = IdleRule("without --fp8-format", lambda config: config.training.fp8_format is None)
NO_QK_LAYERNORM = IdleRule("without --qk-layernorm", lambda config: not config.model.qk_layernorm)
NO_ROPE_SCALING = IdleRule("without --use-rope-scaling", lambda config: not config.model.use_rope_scaling)
NO_SLIDING_WINDOW = IdleRule("without --sliding-window", lambda config: config.model.sliding_window is None)

NO_LATENT = IdleRule("with --latent-mode none", lambda config: config.latent.latent_mode == "none")
# The number of codes, the codebook's initialization and the posterior do count: the control takes its size from them.
CONTINUOUS_LATENT = IdleRule(
    "with --latent-mode continuous: no noise, no KL",
    lambda config: config.latent.latent_mode == "continuous",
)
EMBEDDING_LATENT = IdleRule(
    "with --latent-mode embedding: no codes, no networks, no KL",
    lambda config: config.latent.latent_mode == "embedding",
)
NOT_EMBEDDING = IdleRule(
    "without --latent-mode embedding",
    lambda config: config.latent.latent_mode != "embedding",
)
GAUSSIAN_LATENT = IdleRule(
    "with --latent-mode gaussian, which has no codes",
    lambda config: config.latent.latent_mode == "gaussian",
)
NOT_GAUSSIAN = IdleRule(
    "without --latent-mode gaussian",
    lambda config: config.latent.latent_mode != "gaussian",
)
NO_NETWORKS = (NO_LATENT, EMBEDDING_LATENT)
NO_POSTERIOR = (NO_LATENT, CONTINUOUS_LATENT, EMBEDDING_LATENT)
NO_CODEBOOK = (*NO_NETWORKS, GAUSSIAN_LATENT)
NO_CODES = (*NO_POSTERIOR, GAUSSIAN_LATENT)
EXACT_INFERENCE = IdleRule(
    "with --latent-inference exact (the default with --group-column): no posterior network, no sample, no KL",
    lambda config: config.latent.latent_inference == "exact",
)
AMORTIZED_INFERENCE = IdleRule(
    "without --latent-inference exact",
    lambda config: config.latent.latent_inference != "exact",
)
NO_DIVERGENCE = (*NO_POSTERIOR, EXACT_INFERENCE)
NO_SAMPLING = (*NO_CODES, EXACT_INFERENCE)
CONSTANT_TAU = IdleRule(
    "with --gumbel-tau-schedule constant",
    lambda config: config.latent.gumbel_tau_schedule == "constant",
)
NO_FINAL_TAU = IdleRule("without --gumbel-tau-final", lambda config: config.latent.gumbel_tau_final is None)
NO_KL = IdleRule("with --kl-weight 0", lambda config: config.latent.kl_weight == 0)

NOT_DPO = IdleRule("unless --loss-type is dpo", _loss_not("dpo"))
NOT_DPO_OR_IPO = IdleRule("unless --loss-type is dpo or ipo", _loss_not("dpo", "ipo"))
NOT_IPO = IdleRule("unless --loss-type is ipo", _loss_not("ipo"))
NOT_SIMPO = IdleRule("unless --loss-type is simpo", _loss_not("simpo"))
NO_LABEL_SMOOTHING = IdleRule("without --label-smoothing above 0", lambda config: config.loss.label_smoothing == 0)
NO_REFERENCE = IdleRule(
    f"unless --loss-type is {' or '.join(OBJECTIVES_WITH_REFERENCE)}: the others have no reference",
    _loss_not(*OBJECTIVES_WITH_REFERENCE),
)
REFERENCE_NOT_PRECOMPUTED = IdleRule(
    "without --reference precomputed",
    lambda config: config.loss.reference != "precomputed",
)
REFERENCE_NOT_ONLINE = IdleRule("without --reference online", lambda config: config.loss.reference != "online")

NOT_STREAMING = IdleRule("without --streaming", lambda config: not config.data.streaming)
NO_CHOSEN_COLUMN = IdleRule(
    f"with --data-format {', '.join(WITHOUT_CHOSEN_COLUMN)}, where no column is the chosen response",
    lambda config: config.data.data_format in WITHOUT_CHOSEN_COLUMN,
)
NO_REJECTED_COLUMN = IdleRule(
    f"with --data-format {', '.join(RANKED_FORMATS)}, where no column is the rejected response",
    lambda config: config.data.data_format in RANKED_FORMATS,
)
PACKED = IdleRule("with --pack-to, which decides", lambda config: config.data.pack_to is not None)
NO_VALIDATION = IdleRule("without --valid-data", lambda config: not config.data.valid_data)

NO_GENERATIONS = IdleRule("without --eval-generations", lambda config: config.logging.eval_generations == 0)

NO_GRADIENT_OVERLAP = IdleRule(
    "without --overlap-grad-reduce: gradients are one bucket",
    lambda config: not config.parallel.overlap_grad_reduce,
)
NO_FULL_RECOMPUTE = IdleRule(
    "without --recompute-granularity full",
    lambda config: config.parallel.recompute_granularity != "full",
)

STEPS_GIVEN = IdleRule("with --train-iters, which decides", lambda config: config.training.train_iters is not None)
CONSTANT_LR = IdleRule(
    "with --lr-decay-style constant",
    lambda config: config.training.lr_decay_style == "constant",
)

FROZEN_LR = IdleRule(
    "with --freeze-backbone, which trains only the LPC head: --latent-lr is its learning rate",
    lambda config: config.training.freeze_backbone,
)
FROZEN_REFERENCE = IdleRule(
    "with --freeze-backbone, whose reference is the policy with z = 0",
    lambda config: config.training.freeze_backbone,
)
FROZEN_BACKBONE = IdleRule(
    "with --freeze-backbone, under which the backbone has neither dropout nor a backward pass",
    lambda config: config.training.freeze_backbone,
)
FROZEN_GRADIENTS = IdleRule(
    "with --freeze-backbone: the gradients of the LPC head are one bucket, complete after the last micro-batch",
    lambda config: config.training.freeze_backbone,
)

NOT_FROZEN = IdleRule("without --freeze-backbone", lambda config: not config.training.freeze_backbone)

NOT_LOADED = IdleRule("without --load", lambda config: config.checkpoint.load is None)
NOT_SAVED = IdleRule("without --save", lambda config: config.checkpoint.save is None)

NO_CHECKPOINT = IdleRule(
    "without --save, --load, --pretrained-checkpoint or --reference-load",
    lambda config: (
        not any(
            (
                config.checkpoint.save,
                config.checkpoint.load,
                config.checkpoint.pretrained_checkpoint,
                config.loss.reference_load,
            )
        )
    ),
)

NO_PROFILE = IdleRule("without --profile", lambda config: not config.logging.profile)
NO_MEMORY_HISTORY = IdleRule(
    "without --record-memory-history",
    lambda config: not config.logging.record_memory_history,
)
