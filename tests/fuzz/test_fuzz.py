"""Hostile and damaged files, read as the programs read them: a right value, or a refusal in one line.

    MEGATRON_LPC_FUZZ_INPUTS=10000 python -m pytest -s tests/fuzz/test_fuzz.py

The inputs follow from a fixed seed: two runs have the same ones.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import data_inputs
import model_inputs
from outcome import Tally, bounded_memory, run

FEW, MANY = 150, 10_000
SHARES = {"rows": 30, "options": 20, "tokenizers": 10, "models": 15, "checkpoints": 10, "kept": 15}
"""Kind of input -> percent of all inputs."""


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[st.SearchStrategy[Any], Callable[..., Any]]]:
    """Kind -> strategy of inputs, and their reader."""
    bases = _bases(tmp_path_factory.mktemp("bases"))
    tokenizer = data_inputs.load_tokenizer(
        data_inputs.DataConfig(tokenizer_model=str(bases / "tokenizer" / "tiny.model"))
    )
    tokenizer_files = data_inputs.copy_files(str(bases / "tokenizer"))
    hf, checkpoint = (data_inputs.copy_files(str(bases / name)) for name in ("hf", "checkpoint"))
    cache = data_inputs.copy_files(str(bases / "cache"))
    alone = partial(st.tuples)
    return {
        "rows": (data_inputs.rows(), partial(_with_tokenizer, tokenizer)),
        "options": (data_inputs.option_files(), data_inputs.read_options),
        "tokenizers": (alone(data_inputs.tokenizer_files(tokenizer_files)), data_inputs.read_tokenizer),
        "models": (alone(model_inputs.hf_models(hf)), model_inputs.read_hf_model),
        "checkpoints": (model_inputs.checkpoints(checkpoint), model_inputs.read_checkpoint),
        "kept": (model_inputs.kept_files(cache), model_inputs.read_kept),
    }


def _with_tokenizer(tokenizer: Any, folder: Path, options: dict[str, Any]) -> None:
    data_inputs.read_pairs(folder, options, tokenizer)


def _bases(folder: Path) -> Path:
    """A sound tokenizer, model, checkpoint and data cache."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from megatron_lpc.convert.import_hf import import_hf
    from megatron_lpc.data.cache import build_dataset
    from megatron_lpc.training.checkpoint_integrity import write_manifest

    texts = ["the cat sat on the mat", "a dog ran to the red house", "Human: who are you?"]
    texts = [*texts, "Assistant: I am a small model.", "yes", "no"] * 5
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(folder / "tokenizer")
    train = _module("tools/train_tokenizer.py").train_tokenizer
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{text}", "chosen": "yes", "rejected": "no"}}\n' for text in texts))
    train([str(rows)], str(folder / "tokenizer" / "tiny"), vocab_size=290)

    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", **sizes, num_key_value_heads=1, vocab_size=31, max_position_embeddings=16)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "hf", max_shard_size="2KB")
    torch.save(model.state_dict(), folder / "hf" / "pytorch_model.bin")
    import_hf(folder / "hf", folder / "checkpoint")
    options = dict(vars(_model_of(folder / "checkpoint")))
    shutil.rmtree(folder / "checkpoint" / "hf")
    (folder / "checkpoint" / "description.json").write_bytes(model_inputs.run_description(options))
    save_file({"torch": torch.zeros(3)}, folder / "checkpoint" / "random_state_00000.safetensors")
    write_manifest(folder / "checkpoint", {})

    data = data_inputs.DataConfig(
        tokenizer_model=str(folder / "tokenizer" / "tiny.model"), data_cache_path=str(folder / "caches"), num_workers=1
    )
    (folder / "cache").symlink_to(build_dataset(data, data_inputs.load_tokenizer(data), [str(rows)], "rows").folder)
    return folder


def _model_of(checkpoint: Path) -> Any:
    from megatron_lpc.convert.description import describe_megatron

    return describe_megatron(checkpoint).model


def _module(path: str) -> Any:
    file = Path(__file__).parents[2] / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    """The folder of an input, with folders beside it that nothing may read or leave something in."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return tmp_path / "in"


def _fuzz(strategy: st.SearchStrategy[Any], read: Callable[..., Any], sandbox: Path, num_inputs: int) -> Tally:
    tally = Tally()

    @settings(
        max_examples=num_inputs,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(drawn: tuple[Any, ...]) -> None:
        files, *rest = drawn
        data_inputs.place(files, sandbox)
        run(lambda folder: read(folder, *rest), sandbox, tally, lambda: repr((rest, files))[:3000])

    with bounded_memory():
        one()
    return tally


def _check(kind: str, kinds: Any, sandbox: Path, num_inputs: int) -> None:
    tally = _fuzz(*kinds[kind], sandbox, num_inputs)
    print(f"\n{tally.line(kind)}")
    found = "\n".join(f"{what}\n    {described}" for what, described in tally.findings.items())
    assert not tally.findings, f"{tally.line(kind)}\n{found}"
    assert tally.counts["accepted"] > 0
    assert tally.counts["refused"] > 0


@pytest.mark.parametrize("kind", SHARES)
def test_few_hostile_inputs(kind, kinds, sandbox):
    _check(kind, kinds, sandbox, int(os.environ.get("MEGATRON_LPC_FUZZ_INPUTS", FEW)) * SHARES[kind] // 100)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", SHARES)
def test_ten_thousand_hostile_inputs(kind, kinds, sandbox):
    _check(kind, kinds, sandbox, MANY * SHARES[kind] // 100)
