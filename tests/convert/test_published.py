"""Options that follow from the settings of published models, and tokenizers of the DeepSeek-R1 distills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from megatron_lpc.config import DataConfig
from megatron_lpc.convert.settings import read_model
from megatron_lpc.data.tokenizer import load_tokenizer

FOLDER = Path(__file__).parent / "published"
"""NAME.json: what config.json of the model NAME says of its architecture."""
OPTIONS: dict[str, dict[str, Any]] = {
    "OLMo-2-1124-7B": {"norm_position": "output", "qk_layernorm": True, "qk_layernorm_scope": "projection"},
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
    _, model = read_model(json.loads((FOLDER / f"{name}.json").read_text()))
    assert {option: getattr(model, option) for option in OPTIONS[name]} == OPTIONS[name]


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
