"""Training by TRL's DPOTrainer, on a transformers Llama of the same shape and the same token ids."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.training.meter import Meter
from benchmarks.training.providers import Skipped
from benchmarks.training.workload import SEED, Workload
from megatron_lpc.data.tokenizer import load_tokenizer


def measure_trl(work: Workload, provider: str) -> dict[str, Any]:
    """Seconds and memory of TRL's trainer.

    Raises:
        Skipped: this version of TRL does not do what the provider is named after.
    """
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    shape = _llama_config(work)
    columns = _token_columns(work)
    tokenizer = _unused_tokenizer()
    meter = Meter(work.device)
    with tempfile.TemporaryDirectory() as folder:
        options = _dpo_options(work, folder, padding_free=provider == "trl-padding-free")
        lora = _lora() if provider == "trl-lora" else None
        policy = LlamaForCausalLM(shape).to(torch.float32)
        trainer = _trainer_class()(
            model=policy,
            # With LoRA the policy without its adapters.
            ref_model=LlamaForCausalLM(shape).to(torch.float32) if lora is None else None,
            peft_config=lora,
            args=options,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer,
            callbacks=[_clock(meter)],
        )
        if provider == "trl-padding-free" and not trainer.padding_free:
            raise Skipped(f"TRL {version('trl')} has switched padding_free off")
        trainer.train()
    return meter.result()


def _lora() -> Any:
    """Adapters of the size that TRL's own scripts take by default.

    Raises:
        Skipped: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ModuleNotFoundError:
        raise Skipped("peft is not installed") from None
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, task_type="CAUSAL_LM")


def _llama_config(work: Workload) -> Any:
    """The shape as transformers names it, with the vocabulary padded as this project pads it."""
    from transformers import LlamaConfig

    config = work.config("separate")
    model = config.model
    vocab_size = model.vocab_size or load_tokenizer(config.data).vocab_size
    multiple = model.make_vocab_size_divisible_by
    return LlamaConfig(
        vocab_size=-(-vocab_size // multiple) * multiple,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_query_groups,
        max_position_embeddings=model.max_position_embeddings,
        tie_word_embeddings=not model.untie_embeddings_and_output_weights,
        pad_token_id=0,
    )


def _token_columns(work: Workload) -> dict[str, list[list[int]]]:
    """Token ids of the pairs in the order of training, in TRL's columns."""
    data = work.dataset()
    pairs = [data[index] for index in work.example_indices()]
    names = ("prompt", "chosen", "rejected")
    return {f"{name}_ids": [list(map(int, getattr(pair, name))) for pair in pairs] for name in names}


def _unused_tokenizer() -> Any:
    """TRL wants a tokenizer, and takes only its special tokens: the texts are tokenized already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def _dpo_options(work: Workload, folder: str, padding_free: bool) -> Any:
    """The optimizer and batches of `Workload.config`, in TRL's options."""
    from trl import DPOConfig

    on_gpu = work.device == "cuda"
    return DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=work.micro_batch_size,
        gradient_accumulation_steps=work.global_batch_size // work.micro_batch_size,
        max_steps=work.steps + 1,
        max_length=work.max_length,
        learning_rate=5e-7,
        adam_beta2=0.95,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        padding_free=padding_free,
        use_liger_kernel=work.liger,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        seed=SEED,
    )


def _trainer_class() -> Any:
    """DPOTrainer that takes token ids as they are, in their order. A function, for TRL is imported late."""
    from torch.utils.data import SequentialSampler
    from trl import DPOTrainer

    class GivenTokens(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    return GivenTokens


def _clock(meter: Meter) -> Any:
    """A callback that tells the meter of each step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.step_ended()

    return Clock()
