"""Every option of a run, each owned by exactly one section.

A section is a keyword-only dataclass. The name of a field is its YAML key, and its flag with dashes (``--micro-batch-size``),
so no two sections may share a name. The sentence under a field is the flag's help text.
Names follow Megatron-LM where it has the option, TRL and Hugging Face where it has not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class ModelConfig:
    """Shape of the Llama-like backbone (RMSNorm, gated MLP, rotary positions)."""

    num_layers: int = 4
    """Transformer layers, over all pipeline stages."""
    hidden_size: int = 256
    """Width of the residual stream."""
    ffn_hidden_size: int = 688
    """Width of the gated MLP; of each expert, where there are experts."""
    num_experts: int | None = None
    """Experts, each an MLP, in every layer (Mixtral, Qwen3-MoE); one MLP for all tokens when unset."""
    moe_router_topk: int = 2
    """Experts that a token is sent to."""
    moe_router_pre_softmax: bool = False
    """Weigh the chosen experts by a softmax over all experts, not over those chosen (Hugging Face `norm_topk_prob: false`)."""
    num_attention_heads: int = 8
    """Query heads."""
    num_query_groups: int | None = None
    """Key and value heads (grouped-query attention); as many as query heads when unset."""
    kv_channels: int | None = None
    """Width of one head; hidden size divided by query heads when unset."""
    max_position_embeddings: int = 2048
    """Longest sequence in tokens; `max_length` may not exceed it."""
    vocab_size: int | None = None
    """Words of the vocabulary, without padding; the tokenizer's when unset."""
    make_vocab_size_divisible_by: int = 128
    """The vocabulary is padded to this multiple, whatever the tensor parallel size; padded words never get probability."""
    norm_epsilon: float = 1e-5
    """Added to the variance in RMSNorm."""
    apply_layernorm_1p: bool = False
    """Norm weights are stored as their distance from 1 (Gemma)."""
    activation: Literal["swiglu", "geglu"] = "swiglu"
    """Gate of the MLP: SiLU, or GELU in its tanh form (Gemma)."""
    scale_embeddings: bool = False
    """Multiply input embeddings by the root of the hidden size (Gemma)."""
    rotary_base: int = 10000
    """Base period of the rotary position embedding (Hugging Face `rope_theta`)."""
    rotary_percent: float = 1.0
    """Share of each head that is rotated."""
    rotary_seq_len_interpolation_factor: float | None = None
    """Positions are divided by this (Hugging Face rope type `linear`)."""
    use_rope_scaling: bool = False
    """Scale rotary frequencies as Llama 3.1 does."""
    rope_scaling_factor: float = 8.0
    """Factor of that scaling."""
    add_qkv_bias: bool = False
    """Bias on the query, key and value projections (Qwen2)."""
    qk_layernorm: bool = False
    """RMSNorm on each query and key head (Qwen3)."""
    untie_embeddings_and_output_weights: bool = False
    """Give the LM head weights of its own instead of the input embedding's."""
    sliding_window: int | None = None
    """Tokens a query may attend to, itself included (Mistral); all earlier ones when unset."""
    init_method_std: float = 0.02
    """Standard deviation of the weights of a new model."""
    attention_dropout: float = 0.0
    """Dropout on attention probabilities."""
    hidden_dropout: float = 0.0
    """Dropout on the residual branches."""
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """Layers: the portable ones of this project, or TransformerEngine's (extra `te`, GPU only)."""


@dataclass(kw_only=True)
class LatentConfig:
    """The latent preference code and its training schedule (arXiv 2505.04993, section 3)."""

    latent_mode: Literal["lpc", "none", "continuous"] = "lpc"
    """`lpc`: discrete codes. `none`: the plain algorithm. `continuous`: parameter-matched control, an MLP of the prompt."""
    codebook_size: int = 64
    """Number K of codes."""
    codebook_init_std: float = 0.02
    """Standard deviation of new codes; 0 starts from the plain policy."""
    latent_mlp_hidden_size: int | None = None
    """Hidden width of the prior and posterior networks; the model's hidden size when unset."""
    posterior_input: Literal["concat", "difference", "bilinear"] = "concat"
    """What the posterior reads: [h_w; h_l], h_w - h_l, or [h_w; h_l; h_w * h_l]."""
    relaxation: Literal["soft", "straight_through"] = "soft"
    """Gumbel-softmax weights as they are, or one-hot forward with the soft gradient."""
    gumbel_tau: float = 1.0
    """Temperature of the Gumbel-softmax at the first step."""
    gumbel_tau_final: float | None = None
    """Temperature at the last step; `gumbel_tau` when unset."""
    gumbel_tau_schedule: Literal["constant", "linear", "exponential"] = "constant"
    """How the temperature goes from the first to the last."""
    prior_mix_initial: float = 0.0
    """Share m of the prior in the training latent z = (1 - m) z_q + m z_p at the first step."""
    prior_mix_final: float = 1.0
    """Share m at the last step; m goes linearly."""
    kl_weight: float = 0.05
    """Weight lambda of KL(q || p) in the loss."""
    kl_warmup_iters: int = 0
    """Steps over which lambda rises linearly from 0."""
    kl_free_bits: float = 0.0
    """KL up to this many bits a pair costs nothing."""
    usage_entropy_weight: float = 0.0
    """Bonus on the entropy of the mean posterior over a micro-batch: keeps codes in use."""


@dataclass(kw_only=True)
class LossConfig:
    """The preference objective and where its reference log-probs come from."""

    loss_type: Literal["dpo", "ipo", "simpo", "sft"] = "dpo"
    """Objective. `sft` trains on the chosen response alone."""
    beta: float = 0.1
    """Strength of the pull to the reference (dpo, ipo), scale of the reward (simpo)."""
    label_smoothing: float = 0.0
    """dpo: assumed probability that a label is flipped (conservative DPO)."""
    robust: bool = False
    """dpo: unbiased estimate under that flip probability (robust DPO) instead of the conservative one."""
    rpo_alpha: float = 0.0
    """dpo and ipo: weight of the length-averaged negative log-prob of the chosen response added to the loss."""
    simpo_gamma: float = 0.5
    """simpo: target reward margin."""
    ipo_length_average: bool = True
    """ipo: average log-probs over the response (TRL) or sum them (OpenRLHF, the paper)."""
    reference: Literal["online", "precomputed"] = "online"
    """dpo and ipo: a frozen copy in the same layout, or log-probs from `reference_cache`."""
    reference_cache: str | None = None
    """Folder written by `python -m megatron_lpc.precompute_reference`: one file a data set, training and validation."""
    reference_load: str | None = None
    """Checkpoint of the reference; the weights that training starts from when unset."""
    reference_offload: bool = False
    """Keep the online reference in host memory between its passes."""
    logps_algorithm: Literal["auto", "recompute", "pairwise", "frozen"] = "auto"
    """How the LM head is worked off. `pairwise`: logits of whole pairs become gradients at once. `recompute`: backward makes logits again.
    `frozen`: no gradient of the head. `auto`: `pairwise`, unless a pair has more response tokens than `logps_chunk_size`."""
    logps_chunk_size: int = 1024
    """Response tokens whose logits are in memory at one time."""


@dataclass(kw_only=True)
class DataConfig:
    """Preference data and how it becomes tokens."""

    train_data: list[str] = field(default_factory=list)
    """Files (.jsonl, .jsonl.gz, .parquet, .arrow) or Hub names (`owner/name` or `owner/name:split`)."""
    valid_data: dict[str, str] = field(default_factory=dict)
    """Named validation sets: name -> file or Hub name. As a flag: NAME=FILE …"""
    tokenizer_model: str = ""
    """Folder or name of a Hugging Face tokenizer, or a sentencepiece .model file."""
    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's chat template."""
    max_length: int = 512
    """Longest prompt + response in tokens."""
    max_prompt_length: int | None = None
    """Longest prompt in tokens; prompts are cut by `truncation_mode`. Not limited by itself when unset."""
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_end"
    """Which end of a too long prompt stays; responses always keep their start."""
    streaming: bool = False
    """Read the training data while training goes on, without a tokenized copy on disk; needs `train_iters`."""
    shuffle_buffer_size: int = 10000
    """With `streaming`: pairs that are shuffled together, and held, on each data parallel rank."""
    share_prompt: bool = False
    """One row a pair, prompt, chosen, rejected: the prompt is computed once and seen by both responses. The same numbers for less work."""
    pack_to: int | None = None
    """Tokens of a packed row, which holds as many pairs as fit and is a micro-batch by itself; pairs are not packed when unset."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """Stop at the first unusable row, or count such rows and write them to a side file."""
    data_cache_path: str = ".cache/megatron_lpc"
    """Folder of the tokenized, memory-mapped copies."""
    group_column: str | None = None
    """Column that names the annotator (or source) of a pair, for support evaluation and analysis; not seen by the model."""


@dataclass(kw_only=True)
class ParallelConfig:
    """How the model is spread over processes. Data parallel size follows from the world size."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cuda` with NCCL, `cpu` with gloo; `auto` takes CUDA when there is a GPU."""
    tensor_model_parallel_size: int = 1
    """Ranks over which each matrix is split."""
    pipeline_model_parallel_size: int = 1
    """Ranks over which the layers are split."""
    num_virtual_stages_per_pipeline_rank: int | None = None
    """Model chunks a pipeline rank holds (interleaved 1F1B)."""
    sequence_parallel: bool = False
    """Split activations between tensor parallel regions along the sequence."""
    use_distributed_optimizer: bool = False
    """Split optimizer state over data parallel ranks."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass goes on."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the forward pass goes on (distributed optimizer)."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Activation recomputation: whole layers, or attention alone."""
    recompute_method: Literal["uniform", "block"] | None = None
    """With `full`: in equal blocks of layers, or the first layers of a stage."""
    recompute_num_layers: int | None = None
    """With `full`: layers a block, or layers recomputed a stage."""
    distributed_timeout_minutes: int = 10
    """Time after which a waiting collective gives up; other ranks wait so while the first one tokenizes new data."""


@dataclass(kw_only=True)
class TrainingConfig:
    """Batches, steps, optimizer and learning rate."""

    micro_batch_size: int = 4
    """Preference pairs in one forward pass of one data parallel rank."""
    global_batch_size: int = 32
    """Preference pairs in one optimizer step."""
    train_iters: int | None = None
    """Optimizer steps; `num_train_epochs` decides when unset."""
    num_train_epochs: float = 1.0
    """Passes over the training data."""
    seed: int = 1234
    """Seed of new weights, of the data order and of the latent noise."""
    bf16: bool = False
    """Compute in bfloat16 with fp32 master weights; fp32 when unset."""
    lr: float = 5e-7
    """Learning rate at its highest."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    latent_lr: float | None = None
    """Learning rate of the LPC head at its highest; `lr` when unset."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay."""
    lr_warmup_fraction: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay on matrices."""
    adam_beta1: float = 0.9
    """First moment's decay."""
    adam_beta2: float = 0.95
    """Second moment's decay."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 never clips."""
    max_bad_steps: int = 3
    """Steps in a row that may have a non-finite loss or gradient (each is skipped) before the run stops."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """Where a run starts from and what it leaves."""

    save: str | None = None
    """Folder of checkpoints, resolved configuration, metrics and curves; nothing is kept when unset."""
    load: str | None = None
    """Folder of checkpoints to resume from. `auto`: `save`, when it holds one."""
    pretrained_checkpoint: str | None = None
    """Checkpoint whose weights alone start the run."""
    save_interval: int = 0
    """Steps between checkpoints; 0 saves at the end only."""
    keep_last: int = 0
    """Newest checkpoints kept; 0 keeps all."""
    async_save: bool = False
    """Write checkpoints while training goes on."""


@dataclass(kw_only=True)
class LoggingConfig:
    """What is watched, and how often."""

    log_interval: int = 1
    """Steps between lines in the metrics file."""
    eval_interval: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_iters: int | None = None
    """Global batches of one evaluation; the whole validation set when unset."""
    tensorboard: bool = True
    """Write TensorBoard events under `save`."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too (needs the package `wandb`)."""
    peak_tflops: float | None = None
    """Peak of one device for `mfu`; known for common GPUs, measured by a matrix product on CPU, when unset."""


@dataclass(kw_only=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
