"""Fields of requests, the truncated `logit_bias`, and the processor for SGLang under a stand-in for SGLang itself."""

from __future__ import annotations

import json
import logging
import pickletools
import sys
from collections.abc import Callable
from importlib import import_module, reload
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from serving_export import CODES, MIXTURE
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from megatron_lpc.convert.hub.latent_table import LatentTable, table_of_environment
from megatron_lpc.convert.hub.logit_bias import logit_bias
from megatron_lpc.convert.hub.request import main, token_counts

WARM = [0.0, 1.0, 0.0, 0.0]


@pytest.fixture
def export(for_servers: Path) -> Path:
    return for_servers / "served"


@pytest.fixture
def fields(export: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def fields(*flags: str) -> Any:
        main([str(export), *flags])
        return json.loads(capsys.readouterr().out)

    return fields


def under(bias: dict[int, float], logits: Tensor) -> Tensor:
    """log-probs."""
    added = torch.zeros_like(logits)
    added[..., list(bias)] = torch.tensor(list(bias.values()))
    return (logits + added).log_softmax(-1)


def test_a_constant_costs_no_entry() -> None:
    added = torch.full((50,), 7.0)
    added[[3, 8, 20]] += torch.tensor([2.0, -1.5, 0.5])
    bias = logit_bias(added, 3)
    assert bias.keys() == {3, 8, 20}
    logits = torch.randn(50)
    torch.testing.assert_close(under(bias, logits), (logits + added).log_softmax(-1), rtol=0, atol=1e-3)


def test_all_entries_are_the_latent() -> None:
    logits, added = torch.randn(2, 40)
    bias = logit_bias(5 * added, 1000)
    assert len(bias) == 40
    torch.testing.assert_close(under(bias, logits), (logits + 5 * added).log_softmax(-1), rtol=0, atol=1e-3)


def test_frequent_tokens_matter_more() -> None:
    generator = torch.Generator().manual_seed(2)
    frequency = torch.randn(500, generator=generator).mul(2.5).softmax(0)
    added = torch.randn(500, generator=generator)
    exact = (frequency.log() + added).log_softmax(-1)

    def loss(entries: int, counts: Tensor | None) -> float:
        truncated = under(logit_bias(added, entries, counts), frequency.log())
        return float((exact.exp() * (exact - truncated)).sum())

    seen = [loss(entries, frequency * 1e5) for entries in (5, 25, 100)]
    unseen = [loss(entries, None) for entries in (5, 25, 100)]
    assert seen[0] > seen[1] > seen[2] > 0
    assert all(one < other / 2 for one, other in zip(seen, unseen, strict=True)), (seen, unseen)


def test_biases_stay_within_what_servers_take() -> None:
    bias = logit_bias(torch.tensor([0.0, 0.0, 0.0, 900.0, -900.0]), 5)
    assert (min(bias.values()), max(bias.values())) == (-100, 100)


def test_fields_of_each_server(export: Path, fields: Callable[..., Any]) -> None:
    found = fields("--latent", "warm", "--server", "vllm")
    assert found == {"vllm_xargs": {"lpc_latent": WARM}}
    assert fields("--latent", "mean", "--server", "vllm") == {"vllm_xargs": {"lpc_latent": "mean"}}
    found = fields("--latent", "ann", "--server", "sglang")
    assert found["custom_params"]["lpc_latent"] == pytest.approx(MIXTURE)
    pickled = bytes.fromhex(json.loads(found["custom_logit_processor"])["callable"])
    codes = [(code.name, argument) for code, argument, _ in pickletools.genops(pickled)]
    assert codes == [("GLOBAL", "lpc_serving.sglang_latents LatentLogits"), ("STOP", None)]
    added = LatentTable(export).values[1]
    found = fields("--latent", "1", "--server", "openai", "--entries", "7")
    assert found == {"logit_bias": {str(token): bias for token, bias in logit_bias(added, 7).items()}}
    assert len(found["logit_bias"]) == 7
    assert len(fields("--latent", "1", "--server", "openai")["logit_bias"]) == 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latent", "nobody", "--server", "sglang"], "no code and no saved latent of the name 'nobody'"),
        (["--latent", "[1, 0]", "--server", "openai"], "must be 4 weights, one per code, got 2"),
        (["--latent", "mean", "--server", "openai"], "'mean' needs the prompt, which only vLLM's V1 engine shows"),
        (["--latent", "null", "--server", "vllm"], "needs no field"),
        (["--latent", "1", "--server", "vllm", "--entries", "3"], "no effect with --server vllm"),
        (["--latent", "1", "--server", "openai", "--entries", "0"], "--entries 0: must be at least 1"),
        (["--latent", "1", "--server", "openai", "--responses", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_asked_for(
    export: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main([str(export), *flags])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_counts_of_tokens(tmp_path: Path) -> None:
    inner = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(tmp_path)
    file = tmp_path / "pairs.jsonl"
    chat = [{"role": "assistant", "content": "b b"}]
    rows = [{"prompt": "b b b b", "chosen": "a b", "rejected": chat}, {"response": "a"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert token_counts(tmp_path, [file], 5).tolist() == [3, 2, 3, 0, 0]
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl: no line has chosen, rejected or response"):
        token_counts(tmp_path, [file], 5)
    file.write_text('{"chosen": "a"}\n{"chosen": 3}\n')
    with pytest.raises(ValueError, match=r"pairs\.jsonl:2: is no JSON object"):
        token_counts(tmp_path, [file], 5)


@pytest.fixture
def processor(export: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("sglang.srt.sampling.custom_logit_processor")
    vars(module)["CustomLogitProcessor"] = object
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("LPC_EXPORT", str(export))
    table_of_environment.cache_clear()
    return reload(import_module("megatron_lpc.convert.hub.sglang_latents")).LatentLogits()


def test_requests_of_sglang(processor: Any, export: Path) -> None:
    values = LatentTable(export).values
    asked: list[dict[str, Any] | None] = [
        {"lpc_latent": "warm", "__req__": object()},
        None,
        {"lpc_latent": MIXTURE},
        {},
    ]
    weights = torch.tensor([WARM, [0.0] * CODES, MIXTURE, [0.0] * CODES])
    for tokens in (1, 3):  # Several rows per request under speculative decoding.
        logits = torch.randn(4 * tokens, values.size(1) + 5)
        found = processor(logits.clone(), asked)
        expected = logits[:, :-5] + (weights @ values).repeat_interleave(tokens, dim=0)
        torch.testing.assert_close(found[:, :-5], expected)
        assert torch.equal(found[:, -5:], logits[:, -5:]), "padding of the vocabulary"
    logits = torch.randn(2, values.size(1))
    assert torch.equal(processor(logits.clone(), None), logits)


def test_a_malformed_latent_does_not_end_sglang(processor: Any, export: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.randn(1, LatentTable(export).values.size(1))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert torch.equal(processor(logits.clone(), [{"lpc_latent": [1.0]}]), logits)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "lpc_latent: must be 4 weights, one per code, got 1"
    ]
