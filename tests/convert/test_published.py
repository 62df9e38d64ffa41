"""config.json of published models, as several versions of transformers wrote it; tokenizers of the R1 distills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import SIZES, WINDOW, prompts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_lpc.config import DataConfig
from megatron_lpc.convert.description import describe_megatron
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.convert.logits import hf_logits, megatron_logits
from megatron_lpc.convert.settings import read_model
from megatron_lpc.data.tokenizer import load_tokenizer

FILES = sorted((Path(__file__).parent / "published").glob("*.json"))
PUBLISHED: dict[str, dict[str, Any]] = {file.stem: json.loads(file.read_text()) for file in FILES}
"""Name of a model -> its config.json."""
NARROW: dict[str, Any] = SIZES | {
    "moe_intermediate_size": 40,
    "max_window_layers": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "no_rope_layer_interval": 2,
}
"""Fields of a small model, for those that the published one sets."""
OPTIONS: dict[str, dict[str, Any]] = {
    "OLMo-2-1124-7B-Instruct": {"norm_position": "output", "qk_layernorm": True, "qk_layernorm_scope": "projection"},
    "SmolLM3-3B": {"no_rope_freq": [4], "sliding_window": None, "rotary_base": 5000000},
    "phi-4": {"rotary_base": 250000, "sliding_window": None, "num_query_groups": 10},
    "Phi-3-mini-4k-instruct": {"sliding_window": 2047, "rotary_percent": 1.0},
    "gemma-2-9b-it": {
        "norm_position": "both",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": None,
        "sliding_window": 4096,
        "window_attn_skip_freq": [2],
        "untie_embeddings_and_output_weights": False,
    },
    "gemma-3-1b-it": {
        "norm_position": "both",
        "qk_layernorm": True,
        "qk_layernorm_scope": "head",
        "sliding_window": 512,
        "window_attn_skip_freq": [6],
        "rotary_base": 1000000,
        "rope_local_base_freq": 10000,
        "final_logit_softcapping": None,
    },
}
"""Name on the Hub -> options that must follow."""


@pytest.mark.parametrize("name", OPTIONS)
def test_settings(name: str) -> None:
    _, model = read_model(PUBLISHED[name])
    assert {option: getattr(model, option) for option in OPTIONS[name]} == OPTIONS[name]


def narrowed(name: str) -> dict[str, Any]:
    """The same fields with the sizes of a small model: what is unset stays unset, a list of token ids a list."""
    published = PUBLISHED[name]
    small = published | {field: size for field, size in NARROW.items() if published.get(field) is not None}
    groups = published["num_key_value_heads"]
    small["num_key_value_heads"] = {1: 1, published["num_attention_heads"]: 4}.get(groups, 2)
    if isinstance(published["eos_token_id"], list):
        small["eos_token_id"] = [2, 3]
    for field in published.keys() & {"layer_types", "no_rope_layers"}:
        small[field] = published[field][-2:]  # The last layers: one with RoPE, one without.
    return small


@pytest.mark.parametrize("name", PUBLISHED)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """The logits of transformers after the import, every field of the original after the export."""
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**narrowed(name))).float()
    for parameter in model.parameters():
        # Norms away from 1 and biases from 0, or swapped ones go unnoticed.
        parameter.data += torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.1)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(narrowed(name)))
    import_hf(tmp_path / "hf", tmp_path / "megatron")
    ours = megatron_logits(tmp_path / "megatron", describe_megatron(tmp_path / "megatron").model, prompts())
    for one, other in zip(ours, hf_logits(tmp_path / "hf", prompts()), strict=True):
        assert float((one - other).abs().max()) <= 1e-5 * max(1.0, float(other.abs().max()))
    export_hf(tmp_path / "megatron", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back == kept(narrowed(name)) | {"dtype" if "dtype" in back else "torch_dtype": "float32"}


def kept(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what an export does not keep: the dtype of other weights, and names of code that is not there."""
    return {field: value for field, value in settings.items() if field not in ("dtype", "torch_dtype", "auto_map")}


BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_tokenizers_of_r1_distills(tmp_path: Path, model_type: str) -> None:
    """A byte-level tokenizer under the name of Llama's, which works on sentences with ▁ for spaces."""
    vocabulary = {token: number for number, token in enumerate((BOS, EOS, *pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.add_special_tokens([BOS, EOS])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    made.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "bos_token": BOS, "eos_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = load_tokenizer(DataConfig(tokenizer_model=str(tmp_path)))
    text = "Two words,\n one line."
    assert tokenizer.encode(text) == made.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, add_bos=True)[0] == vocabulary[BOS]
    assert tokenizer.decode(tokenizer.encode(text)) == text
