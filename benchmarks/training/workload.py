"""What is trained: model, pairs and batches, the same for every provider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.training.providers import is_exact, is_frozen, num_codes
from megatron_lpc.config import (
    Config,
    DataConfig,
    LatentConfig,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_lpc.data.cache import build_dataset
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.sampler import TrainingOrder
from megatron_lpc.data.tokenizer import load_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "num_layers": 4,
        "hidden_size": 256,
        "ffn_hidden_size": 688,
        "num_attention_heads": 8,
        "num_query_groups": 4,
    },
    "smollm2-135m": {
        "num_layers": 30,
        "hidden_size": 576,
        "ffn_hidden_size": 1536,
        "num_attention_heads": 9,
        "num_query_groups": 3,
        "vocab_size": 49152,
    },
    "llama-3.2-1b": {
        "num_layers": 16,
        "hidden_size": 2048,
        "ffn_hidden_size": 8192,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "vocab_size": 128256,
    },
    "llama-3-8b": {
        "num_layers": 32,
        "hidden_size": 4096,
        "ffn_hidden_size": 14336,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "vocab_size": 128256,
        "untie_embeddings_and_output_weights": True,
    },
}
"""Fields of a `ModelConfig`, by name of the shape."""
SEED = 1234


def _latent(provider: str) -> LatentConfig:
    if "lpc" not in provider:
        return LatentConfig(latent_mode="none")
    options: dict[str, Any] = {"latent_inference": "exact"} if is_exact(provider) else {}
    codes = num_codes(provider)
    return LatentConfig(**options) if codes is None else LatentConfig(codebook_size=codes, **options)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What every provider trains on."""

    data: str
    """File of preference pairs."""
    tokenizer: str
    """sentencepiece model."""
    cache: str
    """Folder of the tokenized pairs."""
    device: str
    shape: str
    """Of `SHAPES`."""
    num_layers: int | None
    """Instead of the number of the shape."""
    steps: int
    """Steps that are timed; one more comes first, to warm up."""
    global_batch_size: int
    micro_batch_size: int
    """Pairs of a forward pass, where pairs are not packed."""
    pack_to: int
    """Tokens of a packed sequence."""
    max_length: int
    liger: bool
    """TRL's `use_liger_kernel`."""

    def config(self, provider: str) -> Config:
        """The options under which a provider of this project trains."""
        packed = "packed" in provider
        training: dict[str, Any] = {
            "global_batch_size": self.global_batch_size,
            "train_iters": self.steps + 1,
            "bf16": self.device == "cuda",
            "seed": SEED,
        }
        if not packed:
            training["micro_batch_size"] = self.micro_batch_size
        if is_frozen(provider):
            training |= {"freeze_backbone": True, "latent_lr": 1e-3}
        if provider.endswith("cached"):
            training["cache_hidden_states"] = f"{self.cache}/hidden-states"
        return Config(
            model=self._model(),
            latent=_latent(provider),
            loss=LossConfig(loss_type="dpo"),
            data=DataConfig(
                train_data=[self.data],
                tokenizer_model=self.tokenizer,
                max_length=self.max_length,
                bad_rows="skip",
                data_cache_path=self.cache,
                share_prompt="shared" in provider,
                pack_to=self.pack_to if packed else None,
            ),
            parallel=ParallelConfig(device=self.device),
            training=TrainingConfig(**training),
        )

    def _model(self) -> ModelConfig:
        shape = SHAPES[self.shape]
        if self.num_layers is not None:
            shape = shape | {"num_layers": self.num_layers}
        return ModelConfig(max_position_embeddings=self.max_length, **shape)

    def dataset(self) -> PairDataset:
        """The pairs, tokenized."""
        config = self.config("separate").data
        return build_dataset(config, load_tokenizer(config), config.train_data, "train")

    def example_indices(self) -> list[int]:
        """The examples in the order of training, those of the first step, which warms up, included."""
        order = TrainingOrder(len(self.dataset()), SEED)
        return order.example_indices(range((self.steps + 1) * self.global_batch_size)).tolist()
