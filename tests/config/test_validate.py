"""Rules between options: each is broken once, and what is right passes."""

import pytest

from megatron_lpc.config import (
    Config,
    ConfigError,
    data_parallel_size,
    head_width,
    num_microbatches,
    padded_vocab_size,
    parse_args,
    validate,
    validate_vocab,
)
from megatron_lpc.config.kinds import is_numeric, split_optional, takes_many
from megatron_lpc.config.options import all_options

RANGES = {name: option.range for name, option in all_options().items() if option.range is not None}


def _config(flags: str = "") -> Config:
    return parse_args(["--train-data", "a.jsonl", "--tokenizer-model", "tokenizer", *flags.split()])


def _problems(flags: str, world_size: int = 1, device_type: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        validate(_config(flags), world_size, device_type)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("flags", "world_size"),
    [
        ("", 1),
        ("", 8),
        ("--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2", 8),
        ("--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 16", 2),
        ("--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather", 4),
        ("--recompute-granularity selective", 1),
        ("--recompute-granularity full --recompute-method uniform --recompute-num-layers 2", 1),
        ("--recompute-granularity full --recompute-method block --recompute-num-layers 3", 1),
        ("--hidden-size 100 --num-attention-heads 4 --kv-channels 32 --num-query-groups 2", 1),
        ("--loss-type sft --latent-mode none", 1),
        ("--loss-type simpo --simpo-gamma 1 --latent-mode none", 1),
        ("--loss-type ipo --no-ipo-length-average --rpo-alpha 0.1 --reference-load r --reference-offload", 1),
        ("--loss-type dpo --label-smoothing 0.1 --robust --reference precomputed --reference-cache f", 1),
        ("--latent-mode continuous --codebook-size 8 --posterior-input bilinear --latent-lr 1e-4", 1),
        (
            "--gumbel-tau 2 --gumbel-tau-final 0.5 --gumbel-tau-schedule exponential --kl-warmup-iters 5 --kl-free-bits 1",
            1,
        ),
        (
            "--save out --load auto --keep-last 2 --save-interval 10 --async-save --valid-data a=b --eval-interval 3 --eval-iters 2",
            1,
        ),
        ("--max-length 64 --max-prompt-length 63 --max-position-embeddings 64", 1),
        ("--lr 1e-3 --min-lr 1e-3 --train-iters 3", 1),
        ("--logps-algorithm pairwise --logps-chunk-size 64", 1),
        ("--share-prompt --micro-batch-size 2", 1),
        ("--streaming --train-iters 5 --shuffle-buffer-size 100 --pack-to 4096", 1),
        ("--share-prompt --pack-to 4096 --global-batch-size 30", 2),
        ("--pack-to 4096 --tensor-model-parallel-size 2 --sequence-parallel", 4),
        ("--use-rope-scaling --rope-scaling-factor 32", 1),
        (
            "--num-experts 4 --moe-router-topk 4 --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2",
            4,
        ),
        ("--num-experts 4 --moe-router-topk 1 --moe-router-pre-softmax", 1),
    ],
)
def test_what_fits_together_passes(flags, world_size):
    validate(_config(flags), world_size)


@pytest.mark.parametrize(
    ("flags", "world_size", "message"),
    [
        ("--hidden-size 100", 1, "--hidden-size 100: must be a multiple of --num-attention-heads 8"),
        ("--num-query-groups 3", 1, "--num-query-groups 3: must divide --num-attention-heads 8"),
        ("--num-experts 4 --moe-router-topk 5", 1, "--moe-router-topk 5: exceeds --num-experts 4"),
        (
            "--num-experts 4 --moe-router-topk 1",
            1,
            "--moe-router-topk 1: a softmax over one chosen expert gives the router no gradient",
        ),
        (
            "--num-experts 4 --tensor-model-parallel-size 2",
            2,
            "under --tensor-model-parallel-size 2 with --sequence-parallel alone",
        ),
        ("--num-experts 4 --transformer-impl transformer_engine", 1, "experts are made of the portable layers alone"),
        ("--rotary-percent 0.1", 1, "--rotary-percent 0.1: rotates 3 of the 32 channels of a head"),
        ("--rotary-percent 0.01", 1, "--rotary-percent 0.01: rotates 0 of the 32 channels of a head"),
        ("--tensor-model-parallel-size 2", 3, "3 processes: must be a multiple of --tensor-model-parallel-size 2"),
        ("--pipeline-model-parallel-size 4", 2, "2 processes: must be a multiple of"),
        ("--tensor-model-parallel-size 16", 16, "--tensor-model-parallel-size 16: must divide --num-attention-heads 8"),
        (
            "--tensor-model-parallel-size 4 --num-query-groups 2",
            4,
            "--tensor-model-parallel-size 4: must divide --num-query-groups 2",
        ),
        ("--tensor-model-parallel-size 2 --hidden-size 129 --kv-channels 32", 2, "2: must divide --hidden-size 129"),
        ("--tensor-model-parallel-size 2 --ffn-hidden-size 129", 2, "2: must divide --ffn-hidden-size 129"),
        (
            "--pipeline-model-parallel-size 3",
            3,
            "--num-layers 4: must be a multiple of --pipeline-model-parallel-size 3",
        ),
        (
            "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 3",
            2,
            "--num-layers 4: must be a multiple of --pipeline-model-parallel-size 2 x --num-virtual-stages-per-pipeline-rank 3",
        ),
        ("--num-virtual-stages-per-pipeline-rank 2", 1, "needs --pipeline-model-parallel-size above 1"),
        (
            "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 12",
            2,
            "--pipeline-model-parallel-size 2; --global-batch-size 12 gives 3 to each rank",
        ),
        ("--sequence-parallel", 1, "--sequence-parallel: splits over tensor parallel ranks"),
        (
            "--overlap-param-gather --use-distributed-optimizer",
            1,
            "--overlap-param-gather: needs --use-distributed-optimizer and",
        ),
        (
            "--overlap-param-gather --overlap-grad-reduce",
            1,
            "--overlap-param-gather: needs --use-distributed-optimizer and",
        ),
        (
            "--recompute-granularity full --recompute-method block",
            1,
            "needs --recompute-method and --recompute-num-layers",
        ),
        (
            "--recompute-granularity full --recompute-num-layers 1",
            1,
            "needs --recompute-method and --recompute-num-layers",
        ),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 3 --pipeline-model-parallel-size 2",
            2,
            "--recompute-num-layers 3: a stage holds only 2 layers",
        ),
        (
            "--recompute-granularity full --recompute-method uniform --recompute-num-layers 3",
            1,
            "must divide the 4 layers of a stage",
        ),
        (
            "--global-batch-size 30",
            1,
            "--global-batch-size 30: must be a multiple of --micro-batch-size 4 x 1 data parallel copies = 4",
        ),
        (
            "--global-batch-size 12",
            2,
            "--global-batch-size 12: must be a multiple of --micro-batch-size 4 x 2 data parallel copies = 8",
        ),
        ("--train-data", 1, "--train-data: is empty"),
        ("--tokenizer-model=", 1, "--tokenizer-model: is empty"),
        ("--max-length 4096", 1, "--max-length 4096: exceeds --max-position-embeddings 2048"),
        (
            "--pack-to 1001 --tensor-model-parallel-size 2 --sequence-parallel",
            2,
            "--pack-to 1001: --sequence-parallel splits rows over --tensor-model-parallel-size 2; make it a multiple of that",
        ),
        (
            "--pack-to 1000",
            3,
            "--global-batch-size 32: with --pack-to it must be a multiple of 3, the least rows a step",
        ),
        (
            "--pack-to 1000 --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 6",
            8,
            "--global-batch-size 6: with --pack-to it must be a multiple of 8",
        ),
        ("--streaming", 1, "--streaming: the length of a stream is not known; set --train-iters"),
        (
            "--streaming --train-iters 5 --reference precomputed --reference-cache c",
            1,
            "--streaming: the rows of a stream have no place",
        ),
        (
            "--pack-to 1000 --usage-entropy-weight 0.1",
            1,
            "--usage-entropy-weight 0.1: is of the pairs of a micro-batch, which --pack-to",
        ),
        (
            "--max-prompt-length 512",
            1,
            "--max-prompt-length 512: leaves no room for a response within --max-length 512",
        ),
        (
            "--logps-algorithm frozen",
            1,
            "--logps-algorithm frozen: makes no gradient of the LM head, and training trains it",
        ),
        ("--loss-type sft", 1, "--latent-mode lpc: --loss-type sft has no pair to compare; set --latent-mode none"),
        (
            "--loss-type sft --latent-mode continuous",
            1,
            "--latent-mode continuous: --loss-type sft has no pair to compare",
        ),
        ("--reference precomputed", 1, "--reference precomputed: needs --reference-cache"),
        ("--lr 1e-5 --min-lr 1e-4", 1, "--min-lr 0.0001: exceeds --lr 1e-05"),
        ("--lr 1e-3 --min-lr 1e-4 --latent-lr 1e-5", 1, "--min-lr 0.0001: exceeds --latent-lr 1e-05"),
        ("--load auto", 1, "--load auto: resumes from --save, which is unset"),
        (
            "--transformer-impl transformer_engine --device cpu",
            1,
            "--transformer-impl transformer_engine: TransformerEngine runs on GPUs only",
        ),
    ],
)
def test_each_contradiction_is_refused(flags, world_size, message):
    assert any(message in line for line in _problems(flags, world_size))


@pytest.mark.parametrize(
    ("flags", "option", "reason"),
    [
        *(
            (f"--latent-mode none {flag}", flag.split()[0], "with --latent-mode none")
            for flag in (
                "--codebook-size 8", "--codebook-init-std 0", "--latent-mlp-hidden-size 8", "--posterior-input bilinear",
                "--relaxation straight_through", "--gumbel-tau 2", "--gumbel-tau-final 2", "--gumbel-tau-schedule linear",
                "--prior-mix-initial 1", "--prior-mix-final 0", "--kl-weight 1", "--kl-warmup-iters 1", "--kl-free-bits 1",
                "--usage-entropy-weight 1", "--latent-lr 1",
            )
        ),
        *(
            (f"--latent-mode continuous {flag}", flag.split()[0], "with --latent-mode continuous")
            for flag in ("--relaxation straight_through", "--gumbel-tau 2", "--prior-mix-final 0", "--kl-weight 1")
        ),
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
        ("--loss-type sft --latent-mode none --reference-offload", "--reference-offload", "the others have no reference"),
        ("--reference-cache f", "--reference-cache", "without --reference precomputed"),
        ("--reference precomputed --reference-cache f --reference-offload", "--reference-offload", "without --reference online"),
        ("--moe-router-topk 3", "--moe-router-topk", "without --num-experts"),
        ("--moe-router-pre-softmax", "--moe-router-pre-softmax", "without --num-experts"),
        ("--rope-scaling-factor 4", "--rope-scaling-factor", "without --use-rope-scaling"),
        ("--recompute-granularity selective --recompute-method block", "--recompute-method", "without --recompute-granularity full"),
        ("--recompute-num-layers 1", "--recompute-num-layers", "without --recompute-granularity full"),
        ("--train-iters 3 --num-train-epochs 2", "--num-train-epochs", "with --train-iters, which decides"),
        ("--lr-decay-style constant --min-lr 1e-7", "--min-lr", "with --lr-decay-style constant"),
        ("--save-interval 3", "--save-interval", "without --save"),
        ("--keep-last 3", "--keep-last", "without --save"),
        ("--async-save", "--async-save", "without --save"),
        ("--eval-interval 3", "--eval-interval", "without --valid-data"),
        ("--eval-iters 3", "--eval-iters", "without --valid-data"),
    ],
)  # fmt: skip
def test_each_option_without_effect_is_refused(flags, option, reason):
    (line,) = _problems(flags)
    assert line.startswith(f"{option} = ")
    assert "has no effect" in line
    assert reason in line
    assert "leave it at its default" in line


def test_an_option_that_equals_its_default_is_never_idle():
    validate(_config("--latent-mode none --kl-weight 0.05 --simpo-gamma 0.5"), 1)


def test_all_problems_are_told_at_once():
    assert len(_problems("--sequence-parallel --max-length 4096 --robust --global-batch-size 3")) == 4


def test_transformer_engine_is_judged_by_the_device_that_was_chosen():
    validate(_config("--transformer-impl transformer_engine"), 1, "cuda")
    assert "GPUs only" in _problems("--transformer-impl transformer_engine", device_type="cpu")[0]


def test_what_the_attention_of_a_device_cannot_do_is_refused():
    for flags in ("--share-prompt", "--pack-to 1000"):
        validate(_config(f"{flags} --attention-dropout 0.1"), 1, "cpu")
        assert (
            "--attention-dropout 0.1: FlexAttention, which"
            in _problems(f"{flags} --attention-dropout 0.1", device_type="cuda")[0]
        )
    validate(_config("--pack-to 1000 --transformer-impl transformer_engine --attention-dropout 0.1"), 1, "cuda")
    problems = _problems("--share-prompt --transformer-impl transformer_engine", device_type="cuda")
    assert problems[0].startswith("--share-prompt: TransformerEngine's attention takes no such mask")


def test_every_numeric_option_has_a_range():
    numeric = {name for name, option in all_options().items() if is_numeric(option.kind)}
    assert set(RANGES) == numeric


@pytest.mark.parametrize("name", RANGES)
def test_values_outside_of_each_range_are_refused(name):
    option, interval = all_options()[name], RANGES[name]
    low, high = interval[1:-1].split(", ")
    outside = [float(low) - 1] + ([float(low)] if interval[0] == "(" else [])
    if high != "inf":
        outside += [float(high) + 1] + ([float(high)] if interval[-1] == ")" else [])
    whole = split_optional(option.kind)[0] in (int, list[int])
    for value in outside:
        text = str(int(value)) if whole else str(value)
        flags = f"{option.flag} {text}" if takes_many(option.kind) else f"{option.flag}={text}"
        assert _problems(flags) == [f"{option.flag} {text}: must be in {interval}"]


@pytest.mark.parametrize("name", RANGES)
def test_defaults_and_closed_ends_are_inside(name):
    option, interval = all_options()[name], RANGES[name]
    ends = [interval[1:-1].split(", ")[side] for side, bracket in ((0, "["), (1, "]")) if interval[-side] == bracket]
    for end in ends:
        try:
            validate(_config(f"{option.flag} {end}"), 1)
        except ConfigError as error:
            assert "must be in" not in str(error)  # noqa: PT017 other rules may well refuse it


def test_vocabulary():
    config = _config("--tensor-model-parallel-size 2 --vocab-size 1000")
    validate_vocab(config, 1000)
    with pytest.raises(ConfigError, match="--vocab-size 1000: the tokenizer has 1001 words"):
        validate_vocab(config, 1001)
    config = _config("--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 5")
    validate_vocab(config, 9)
    with pytest.raises(
        ConfigError, match="--tensor-model-parallel-size 2: does not divide the padded vocabulary of 15 words"
    ):
        validate_vocab(config, 11)


def test_derived_numbers():
    config = _config("--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2")
    assert data_parallel_size(config, 8) == 2
    assert num_microbatches(config, 8) == 4
    assert head_width(config.model) == 32
    assert head_width(_config("--kv-channels 48").model) == 48
    assert [padded_vocab_size(config, v) for v in (1, 128, 129)] == [128, 128, 256]
