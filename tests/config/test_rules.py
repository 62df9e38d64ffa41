"""Rules between options: each is broken once, and what is right passes."""

import pytest

from megatron_lpc.config import ConfigError, seq_len_multiple, validate, validate_vocab

GENERATE = "--valid-data held_out=valid.jsonl --eval-generations 2"


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
        ("--latent-mode gaussian --latent-size 8 --posterior-input concat --kl-weight 0.1 --kl-warmup-iters 3", 1),
        ("--latent-mode continuous --codebook-size 8 --posterior-input bilinear --latent-lr 1e-4", 1),
        ("--latent-inference exact --exact-temperature 0.5 --loss-type ipo --codebook-size 8", 1),
        (
            "--gumbel-tau 2 --gumbel-tau-final 0.5 --gumbel-tau-schedule exponential "
            "--kl-warmup-iters 5 --kl-free-bits 1",
            1,
        ),
        (
            "--save out --load auto --keep-last 2 --save-interval 10 --async-save "
            "--valid-data a=b --eval-interval 3 --eval-iters 2",
            1,
        ),
        ("--max-length 64 --max-prompt-length 63 --max-position-embeddings 64", 1),
        ("--lr 1e-3 --min-lr 1e-3 --train-iters 3", 1),
        ("--freeze-backbone --latent-lr 1e-3 --min-lr 1e-4 --loss-type simpo", 1),
        ("--logps-algorithm pairwise --logps-chunk-size 64", 1),
        ("--share-prompt --micro-batch-size 2", 1),
        ("--streaming --train-iters 5 --shuffle-buffer-size 100 --pack-to 4096", 1),
        ("--share-prompt --pack-to 4096 --global-batch-size 30", 2),
        ("--pack-to 4096 --tensor-model-parallel-size 2 --sequence-parallel", 4),
        ("--use-rope-scaling --rope-scaling-factor 32", 1),
        (
            "--num-experts 4 --moe-router-topk 4 --tensor-model-parallel-size 2 --sequence-parallel "
            "--pipeline-model-parallel-size 2",
            4,
        ),
        ("--num-experts 4 --moe-router-topk 1 --moe-router-pre-softmax", 1),
        ("--norm-position both --qk-layernorm --qk-layernorm-scope projection --attn-logit-softcapping 50", 1),
        ("--num-layers 4 --no-rope-freq 4 --sliding-window 8 --window-attn-skip-freq 1 1 0 0", 1),
        ("--profile --save out --profile-step-start 0 --profile-step-end 1 --profile-ranks 0 3", 4),
        (f"{GENERATE} --save out", 1),
        (f"{GENERATE} --save out --eval-interval 4 --save-interval 2", 1),
        ("--record-memory-history --memory-snapshot-path memory.pickle", 1),
        ("--deterministic --exit-interval 5 --exit-duration-in-mins 60 --rank-log-dir logs", 1),
    ],
)
def test_what_fits_together_passes(config_of, flags, world_size):
    validate(config_of(flags), world_size)


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
            "under --tensor-model-parallel-size 2 only with --sequence-parallel",
        ),
        (
            "--num-layers 4 --no-rope-freq 0",
            1,
            "--no-rope-freq 0: give one number above 0, or a 0 or 1 for each of the 4",
        ),
        ("--num-layers 4 --no-rope-freq 1 0", 1, "--no-rope-freq 1 0: give one number above 0"),
        (
            "--num-layers 2 --sliding-window 8 --window-attn-skip-freq 1 2",
            1,
            "--window-attn-skip-freq 1 2: give one number above 0",
        ),
        (
            "--attn-logit-softcapping 50 --attention-dropout 0.1",
            1,
            "--attention-dropout 0.1: attention with --attn-logit-softcapping has none",
        ),
        (
            "--num-experts 4 --norm-position both",
            1,
            "--norm-position both: layers of experts have a norm on their input only",
        ),
        *(
            (
                f"--transformer-impl transformer_engine {flags}",
                1,
                f"{flag}: TransformerEngine's layers have no such thing",
            )
            for flags, flag in (
                ("--norm-position output", "--norm-position output"),
                ("--qk-layernorm --qk-layernorm-scope projection", "--qk-layernorm-scope projection"),
                ("--attn-logit-softcapping 50", "--attn-logit-softcapping 50.0"),
                ("--sliding-window 8 --rope-local-base-freq 100", "--rope-local-base-freq 100.0"),
            )
        ),
        ("--rotary-percent 0.1", 1, "--rotary-percent 0.1: rotates 3 of the 32 channels of a head"),
        ("--rotary-percent 0.01", 1, "--rotary-percent 0.01: rotates 0 of the 32 channels of a head"),
        ("--tensor-model-parallel-size 2", 3, "3 processes: must be a multiple of --tensor-model-parallel-size 2"),
        ("--pipeline-model-parallel-size 4", 2, "2 processes: must be a multiple of"),
        (
            "--tensor-model-parallel-size 16",
            16,
            "--tensor-model-parallel-size 16: must divide --num-attention-heads 8; a model of Hugging Face is imported "
            "with --make-query-groups-divisible-by 16",
        ),
        (
            "--tensor-model-parallel-size 4 --num-query-groups 2",
            4,
            "--tensor-model-parallel-size 4: must divide --num-query-groups 2",
        ),
        (
            "--padded-query-groups 2 --num-query-groups 2 --kv-channels 32",
            1,
            "--padded-query-groups 2: must be less than --num-query-groups 2",
        ),
        ("--padded-query-groups 1", 1, "--padded-query-groups 1: does not change the size of a head"),
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
            "--num-layers 4: must be a multiple of --pipeline-model-parallel-size 2 "
            "x --num-virtual-stages-per-pipeline-rank 3",
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
            "--recompute-granularity full --recompute-method block --recompute-num-layers 3 "
            "--pipeline-model-parallel-size 2",
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
        *(
            (f"--latent-inference exact {flags}", 1, message)
            for flags, message in (
                ("--label-smoothing 0.1", "--label-smoothing 0.1: with it the loss is not the likelihood of a label"),
                ("--label-smoothing 0.1 --robust", "--robust: has no likelihood"),
                (
                    "--posterior-context 1 --group-column g --logps-algorithm pairwise",
                    "--logps-algorithm pairwise: sees a chunk of pairs at a time",
                ),
                ("--loss-type sft", "--loss-type sft has no pair to compare"),
            )
        ),
        ("--train-data", 1, "--train-data: is empty"),
        ("--tokenizer-model=", 1, "--tokenizer-model: is empty"),
        ("--max-length 4096", 1, "--max-length 4096: exceeds --max-position-embeddings 2048"),
        (
            "--pack-to 1001 --tensor-model-parallel-size 2 --sequence-parallel",
            2,
            "--pack-to 1001: --sequence-parallel splits sequences over --tensor-model-parallel-size 2; "
            "make it a multiple of that",
        ),
        (
            "--pack-to 1000",
            3,
            "--global-batch-size 32: with --pack-to it must be a multiple of 3, the fewest sequences per step",
        ),
        (
            "--pack-to 1000 --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 "
            "--global-batch-size 6",
            8,
            "--global-batch-size 6: with --pack-to it must be a multiple of 8",
        ),
        ("--streaming", 1, "--streaming: the length of a stream is not known; set --train-iters"),
        (
            "--streaming --train-iters 5 --reference precomputed --reference-cache c",
            1,
            "--streaming: streamed pairs have no example index",
        ),
        (
            "--pack-to 1000 --usage-entropy-weight 0.1",
            1,
            "--usage-entropy-weight 0.1: depends on which pairs share a micro-batch, and --pack-to",
        ),
        (
            "--max-prompt-length 512",
            1,
            "--max-prompt-length 512: leaves no room for a response within --max-length 512",
        ),
        ("--loss-type sft", 1, "--latent-mode lpc: --loss-type sft has no pair to compare; set --latent-mode none"),
        (
            "--loss-type sft --latent-mode continuous",
            1,
            "--latent-mode continuous: --loss-type sft has no pair to compare",
        ),
        ("--reference precomputed", 1, "--reference precomputed: needs --reference-cache"),
        (
            "--freeze-backbone --latent-mode none",
            1,
            "--freeze-backbone: trains only the LPC head, and --latent-mode none has none",
        ),
        (
            "--freeze-backbone --latent-lr 1e-3 --cache-hidden-states f --pipeline-model-parallel-size 2",
            2,
            "--cache-hidden-states: all but the last of --pipeline-model-parallel-size 2 stages",
        ),
        (
            "--freeze-backbone --latent-lr 1e-3 --cache-hidden-states f --streaming --train-iters 3",
            1,
            "--cache-hidden-states: streamed pairs have no example index under which hidden states could be kept",
        ),
        ("--lr 1e-5 --min-lr 1e-4", 1, "--min-lr 0.0001: exceeds --lr 1e-05"),
        ("--freeze-backbone --min-lr 1e-4 --latent-lr 1e-5", 1, "--min-lr 0.0001: exceeds --latent-lr 1e-05"),
        ("--load auto", 1, "--load auto: resumes from --save, which is unset"),
        ("--profile", 1, "--profile: writes its traces under --save, which is unset"),
        (
            "--profile --save out --profile-step-start 5 --profile-step-end 5",
            1,
            "--profile-step-end 5: must be above --profile-step-start 5",
        ),
        ("--profile --save out --profile-ranks 0 2", 2, "--profile-ranks 2: the run has 2 processes"),
        ("--profile --save out --profile-ranks", 1, "--profile-ranks: is empty"),
        (GENERATE, 1, "--eval-generations 2: generates from checkpoints in --save, which is unset"),
        (f"{GENERATE} --save out --eval-interval 4", 1, "--save-interval 0 saves none at some steps of"),
        (f"{GENERATE} --save out --eval-interval 4 --save-interval 3", 1, "make it 4, or a divisor of that"),
        (f"{GENERATE} --save out --latent-mode gaussian", 1, "the head of --latent-mode gaussian cannot be exported"),
        (
            f"{GENERATE} --save out --eval-generation-tokens 64 --max-position-embeddings 64 --max-length 64",
            1,
            "--eval-generation-tokens 64: leaves no room for a prompt within --max-position-embeddings 64",
        ),
        ("--record-memory-history --device cpu", 1, "--record-memory-history: PyTorch records its CUDA allocator only"),
        (
            "--transformer-impl transformer_engine --device cpu",
            1,
            "--transformer-impl transformer_engine: TransformerEngine runs on GPUs only",
        ),
    ],
)
def test_each_contradiction_is_refused(problems, flags, world_size, message):
    assert any(message in line for line in problems(flags, world_size))


def test_all_problems_are_reported_at_once(problems):
    assert len(problems("--sequence-parallel --max-length 4096 --robust --global-batch-size 3")) == 4


def test_the_rule_of_transformer_engine_looks_at_the_device_that_was_chosen(config_of, problems):
    validate(config_of("--transformer-impl transformer_engine"), 1, "cuda")
    assert "GPUs only" in problems("--transformer-impl transformer_engine", device_type="cpu")[0]


FP8 = "--fp8-format hybrid --transformer-impl transformer_engine --bf16 --ffn-hidden-size 640"


@pytest.mark.parametrize(
    ("flags", "world_size", "message"),
    [
        ("--transformer-impl local", 1, "--fp8-format hybrid: only TransformerEngine's layers compute in FP8"),
        ("--no-bf16", 1, "--fp8-format hybrid: what is not FP8 is bfloat16; add --bf16"),
        ("--hidden-size 264 --kv-channels 32", 1, "multiples of 16, and --hidden-size is 264;"),
        ("--ffn-hidden-size 648", 1, "multiples of 16, and --ffn-hidden-size is 648;"),
        (
            "--tensor-model-parallel-size 2 --ffn-hidden-size 656",
            2,
            "multiples of 16, and --ffn-hidden-size is 656 over 2 tensor parallel ranks;",
        ),
        ("--kv-channels 6 --num-attention-heads 4", 1, "--num-attention-heads times their width is 24;"),
        ("--kv-channels 20 --num-query-groups 1", 1, "queries, keys and values together is 200;"),
        ("--fp8-recipe mxfp8 --ffn-hidden-size 656", 1, "--fp8-recipe mxfp8: needs multiples of 32"),
        ("--fp8-recipe blockwise --ffn-hidden-size 704", 1, "--fp8-recipe blockwise: needs multiples of 128"),
        ("--pack-to 1000", 1, "make --pack-to 1000 a multiple of 16"),
        (
            "--pack-to 1040 --sequence-parallel --tensor-model-parallel-size 2",
            2,
            "make --pack-to 1040 a multiple of 32",
        ),
    ],
)
def test_what_fp8_needs(problems, flags, world_size, message):
    assert any(message in line for line in problems(f"{FP8} {flags}", world_size, "cuda"))


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "mxfp8"])
def test_fp8_is_accepted(config_of, problems, recipe):
    config = config_of(f"{FP8} --fp8-recipe {recipe} --pack-to 1024")
    validate(config, 1, "cuda")
    assert any("GPUs only" in line for line in problems(f"{FP8} --fp8-recipe {recipe}", device_type="cpu"))


def test_sequences_of_fp8_are_whole_blocks(config_of):
    parallel = "--tensor-model-parallel-size 2 --sequence-parallel"
    multiples = {
        "": 1,
        parallel: 2,
        FP8: 16,
        f"{FP8} {parallel} --fp8-recipe mxfp8": 64,
        f"{FP8} --fp8-recipe blockwise": 128,
    }
    for flags, multiple in multiples.items():
        assert seq_len_multiple(config_of(flags)) == multiple, flags


def test_experts_of_transformer_engine_are_accepted(config_of):
    validate(config_of("--num-experts 4 --transformer-impl transformer_engine"), 1, "cuda")


def test_heads_that_no_fused_kernel_of_a_gpu_takes_are_refused(config_of, problems):
    for channels in (8, 20):
        flags = f"--kv-channels {channels}"
        validate(config_of(flags), 1, "cpu")
        assert f"--kv-channels: attention heads have {channels} channels" in problems(flags, device_type="cuda")[0]
    validate(config_of("--kv-channels 80"), 1, "cuda")


def test_what_the_attention_of_a_device_cannot_do_is_refused(config_of, problems):
    for flags in ("--share-prompt", "--pack-to 1000"):
        validate(config_of(f"{flags} --attention-dropout 0.1"), 1, "cpu")
        assert (
            "--attention-dropout 0.1: FlexAttention, which"
            in problems(f"{flags} --attention-dropout 0.1", device_type="cuda")[0]
        )
    validate(config_of("--pack-to 1000 --transformer-impl transformer_engine --attention-dropout 0.1"), 1, "cuda")
    problems = problems("--share-prompt --transformer-impl transformer_engine", device_type="cuda")
    assert problems[0].startswith("--share-prompt: TransformerEngine's attention takes no such mask")


FLASH = "--flex-attention-backend flash"


@pytest.mark.parametrize("mask", ["--pack-to 1000", "--share-prompt", "--sliding-window 64"])
def test_a_backend_of_flex_attention_is_accepted_on_a_gpu(config_of, mask):
    for backend in ("triton --deterministic", "flash", "flash --bf16"):
        validate(config_of(f"{mask} --flex-attention-backend {backend}"), 1, "cuda")


@pytest.mark.parametrize(
    ("flags", "device", "message"),
    [
        (FLASH, "cpu", f"{FLASH}: FlexAttention is used on GPUs only"),
        ("--flex-attention-backend triton", "cpu", "--flex-attention-backend triton: FlexAttention is used on GPUs"),
        (f"{FLASH} --no-bf16", "cuda", f"{FLASH}: FlashAttention-4 computes in half precision only; add --bf16"),
        (f"{FLASH} --deterministic", "cuda", f"{FLASH}: its backward pass with a block mask does not repeat"),
        (f"{FLASH} --attention-dropout 0.1", "cuda", f"{FLASH}: FlexAttention has no dropout"),
        (f"{FLASH} --attn-logit-softcapping 50", "cuda", f"{FLASH}: takes no --attn-logit-softcapping"),
    ],
)
def test_what_a_backend_of_flex_attention_cannot_do_is_refused(problems, flags, device, message):
    (line,) = problems(f"--sliding-window 64 {flags}", device_type=device)
    assert line.startswith(message)


def test_vocabulary(config_of):
    config = config_of("--tensor-model-parallel-size 2 --vocab-size 1000")
    validate_vocab(config, 1000)
    with pytest.raises(ConfigError, match="--vocab-size 1000: the tokenizer has 1001 token ids"):
        validate_vocab(config, 1001)
    config = config_of("--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 5")
    validate_vocab(config, 9)
    with pytest.raises(
        ConfigError, match="--tensor-model-parallel-size 2: does not divide the padded vocabulary size 15"
    ):
        validate_vocab(config, 11)


def test_swap_guidance_needs_couples_of_codes(problems):
    (line,) = problems("--swap-guidance-weight 0.5 --codebook-size 7")
    assert "--swap-guidance-weight 0.5: codes mirror each other in couples, and --codebook-size 7 is odd" in line
