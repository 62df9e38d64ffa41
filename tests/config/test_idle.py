"""Options without effect: each is refused where it is set, with the reason."""

import pytest

from megatron_lpc.config import idle_rules, validate
from megatron_lpc.config.metadata import IdleRule
from megatron_lpc.config.options import all_options


@pytest.mark.parametrize(
    ("flags", "option", "reason"),
    [
        *(
            (f"--latent-mode none {flag}", flag.split()[0], "with --latent-mode none")
            for flag in (
                "--codebook-size 8",
                "--codebook-init-std 0",
                "--latent-mlp-hidden-size 8",
                "--posterior-input bilinear",
                "--relaxation straight_through",
                "--gumbel-tau 2",
                "--gumbel-tau-final 2",
                "--gumbel-tau-schedule linear",
                "--prior-mix-initial 1",
                "--prior-mix-final 1",
                "--kl-weight 1",
                "--kl-warmup-iters 1",
                "--kl-free-bits 1",
                "--usage-entropy-weight 1",
                "--posterior-context 1",
                "--swap-guidance-weight 1",
                "--latent-lr 1",
            )
        ),
        *(
            (f"--latent-mode continuous {flag}", flag.split()[0], "with --latent-mode continuous")
            for flag in (
                "--relaxation straight_through",
                "--gumbel-tau 2",
                "--prior-mix-final 1",
                "--kl-weight 1",
                "--posterior-context 1",
                "--swap-guidance-weight 1",
            )
        ),
        *(
            (f"--latent-mode embedding {flag}", flag.split()[0], "with --latent-mode embedding")
            for flag in (
                "--codebook-size 8",
                "--codebook-init-std 0",
                "--latent-mlp-hidden-size 8",
                "--posterior-input bilinear",
                "--posterior-context 1",
                "--relaxation straight_through",
                "--gumbel-tau 2",
                "--prior-mix-final 1",
                "--kl-weight 1",
                "--usage-entropy-weight 1",
                "--swap-guidance-weight 1",
                "--latent-lr 1",
            )
        ),
        *(
            (f"--latent-mode gaussian {flag}", flag.split()[0], "with --latent-mode gaussian")
            for flag in (
                "--codebook-size 8",
                "--relaxation straight_through",
                "--gumbel-tau 2",
                "--prior-mix-final 1",
                "--usage-entropy-weight 1",
                "--swap-guidance-weight 1",
            )
        ),
        ("--latent-size 8", "--latent-size", "without --latent-mode gaussian"),
        ("--known-groups ada", "--known-groups", "without --latent-mode embedding"),
        ("--group-dropout 0.5", "--group-dropout", "without --latent-mode embedding"),
        *(
            (f"--latent-mode {mode} --latent-inference exact", "--latent-inference", f"with --latent-mode {mode}")
            for mode in ("none", "continuous", "embedding", "gaussian")
        ),
        *(
            (f"--latent-inference exact {flag}", flag.split()[0], "with --latent-inference exact")
            for flag in (
                "--posterior-input bilinear",
                "--relaxation straight_through",
                "--gumbel-tau 2",
                "--gumbel-tau-final 2",
                "--gumbel-tau-schedule linear",
                "--prior-mix-initial 1",
                "--prior-mix-final 0.5",
                "--kl-weight 1",
                "--kl-warmup-iters 1",
                "--kl-free-bits 1",
                "--usage-entropy-weight 1",
                "--swap-guidance-weight 1",
            )
        ),
        ("--exact-temperature 0.5", "--exact-temperature", "without --latent-inference exact"),
        ("--gumbel-tau-final 0.5", "--gumbel-tau-final", "with --gumbel-tau-schedule constant"),
        ("--shuffle-buffer-size 5", "--shuffle-buffer-size", "without --streaming"),
        ("--pack-to 1000 --micro-batch-size 2", "--micro-batch-size", "with --pack-to, which decides"),
        ("--gumbel-tau-schedule linear", "--gumbel-tau-schedule", "without --gumbel-tau-final"),
        ("--kl-weight 0 --kl-warmup-iters 3", "--kl-warmup-iters", "with --kl-weight 0"),
        ("--kl-weight 0 --kl-free-bits 3", "--kl-free-bits", "with --kl-weight 0"),
        ("--loss-type ipo --label-smoothing 0.1", "--label-smoothing", "unless --loss-type is dpo"),
        ("--loss-type simpo --robust", "--robust", "unless --loss-type is dpo"),
        ("--robust", "--robust", "without --label-smoothing above 0"),
        ("--loss-type simpo --rpo-alpha 1", "--rpo-alpha", "unless --loss-type is dpo or ipo"),
        ("--simpo-gamma 1", "--simpo-gamma", "unless --loss-type is simpo"),
        ("--no-ipo-length-average", "--ipo-length-average", "unless --loss-type is ipo"),
        ("--loss-type simpo --reference precomputed", "--reference", "the others have no reference"),
        ("--loss-type simpo --reference-cache f", "--reference-cache", "the others have no reference"),
        ("--loss-type simpo --reference-load f", "--reference-load", "the others have no reference"),
        (
            "--loss-type sft --latent-mode none --reference-offload",
            "--reference-offload",
            "the others have no reference",
        ),
        ("--reference-cache f", "--reference-cache", "without --reference precomputed"),
        (
            "--reference precomputed --reference-cache f --reference-offload",
            "--reference-offload",
            "without --reference online",
        ),
        *(
            (f"--freeze-backbone --latent-lr 1e-3 {flag}", flag.split()[0], "with --freeze-backbone")
            for flag in (
                "--lr 1e-3",
                "--reference precomputed",
                "--reference-cache f",
                "--reference-load f",
                "--reference-offload",
                "--overlap-grad-reduce",
                "--recompute-granularity selective",
                "--attention-dropout 0.1",
                "--hidden-dropout 0.1",
            )
        ),
        ("--cache-hidden-states f", "--cache-hidden-states", "without --freeze-backbone"),
        ("--moe-router-topk 3", "--moe-router-topk", "without --num-experts"),
        ("--moe-router-pre-softmax", "--moe-router-pre-softmax", "without --num-experts"),
        (
            "--flex-attention-backend triton --device cuda",
            "--flex-attention-backend",
            "without --pack-to, --share-prompt",
        ),
        (
            "--flex-attention-backend flash --device cuda --pack-to 1000 --transformer-impl transformer_engine",
            "--flex-attention-backend",
            "with --transformer-impl transformer_engine",
        ),
        ("--qk-layernorm-scope projection", "--qk-layernorm-scope", "without --qk-layernorm"),
        ("--window-attn-skip-freq 2", "--window-attn-skip-freq", "without --sliding-window"),
        ("--rope-local-base-freq 100", "--rope-local-base-freq", "without --sliding-window"),
        ("--rope-scaling-factor 4", "--rope-scaling-factor", "without --use-rope-scaling"),
        (
            "--recompute-granularity selective --recompute-method block",
            "--recompute-method",
            "without --recompute-granularity full",
        ),
        ("--ddp-bucket-size 1000", "--ddp-bucket-size", "without --overlap-grad-reduce"),
        ("--recompute-num-layers 1", "--recompute-num-layers", "without --recompute-granularity full"),
        ("--train-iters 3 --num-train-epochs 2", "--num-train-epochs", "with --train-iters, which decides"),
        ("--lr-decay-style constant --min-lr 1e-7", "--min-lr", "with --lr-decay-style constant"),
        ("--save-interval 3", "--save-interval", "without --save"),
        ("--keep-last 3", "--keep-last", "without --save"),
        ("--async-save", "--async-save", "without --save"),
        ("--eval-interval 3", "--eval-interval", "without --valid-data"),
        ("--eval-iters 3", "--eval-iters", "without --valid-data"),
        ("--profile-step-start 3", "--profile-step-start", "without --profile"),
        ("--profile-step-end 30", "--profile-step-end", "without --profile"),
        ("--profile-ranks 1", "--profile-ranks", "without --profile"),
        ("--memory-snapshot-path m", "--memory-snapshot-path", "without --record-memory-history"),
    ],
)
def test_each_option_without_effect_is_refused(problems, flags, option, reason):
    (line,) = problems(flags)
    assert line.startswith(f"{option} = ")
    assert "has no effect" in line
    assert reason in line
    assert "leave it at its default" in line


def test_an_option_that_equals_its_default_is_never_idle(config_of):
    validate(config_of("--latent-mode none --kl-weight 0.05 --simpo-gamma 0.5"), 1)


def test_every_rule_concerns_an_option():
    named = {id(rule) for option in all_options().values() for rule in option.idle}
    defined = [rule for rule in vars(idle_rules).values() if isinstance(rule, IdleRule)]
    assert defined
    assert all(id(rule) in named for rule in defined)
