"""A trained model with its head: transformers computes what megatron-core does, under every latent; nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_model import Megatron, megatron_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_lpc.config import ModelConfig
from megatron_lpc.convert.description import describe_megatron
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.data.collate import collate
from megatron_lpc.data.encode import EncodedPair
from megatron_lpc.evaluate import main as evaluate
from megatron_lpc.losses.schedules import LatentState
from megatron_lpc.train import main as train

CODES = 6
NAMES = [f"code {number}" for number in range(CODES)]
NEW_TOKENS = 6
HEADS = {
    "llama": ["--posterior-input", "bilinear", "--latent-mlp-hidden-size", "20"],
    "qwen3": ["--qk-layernorm", "--no-untie-embeddings-and-output-weights", "--sliding-window", "5"],
    "gemma": ["--apply-layernorm-1p", "--activation", "geglu", "--scale-embeddings", "--posterior-input", "difference"],
    "gemma2": [
        *("--apply-layernorm-1p", "--activation", "geglu", "--scale-embeddings", "--norm-position", "both"),
        *("--attn-logit-softcapping", "2", "--final-logit-softcapping", "3", "--query-pre-attn-scalar", "10"),
        *("--sliding-window", "5", "--window-attn-skip-freq", "2", "--no-untie-embeddings-and-output-weights"),
    ],
    "qwen3_moe": ["--num-experts", "4", "--moe-router-pre-softmax", "--qk-layernorm"],
    "continuous": ["--latent-mode", "continuous"],
    "exact": ["--latent-inference", "exact"],
}
"""Name -> flags of a run, which decide the family. Codes are large and learn fast, so that z changes the tokens."""


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, flags in HEADS.items():
        common = ["--codebook-init-std", "2", "--latent-lr", "0.02", "--train-iters", "4", "--save", str(folder / name)]
        train(["--config", tiny_run.config, *common, *flags])
        names = NAMES if name == "llama" else None
        export_hf(folder / name, folder / f"{name}-hf", code_names=names, max_shard_bytes=40_000)
    return {name: folder / name for name in HEADS}


def prompts() -> list[Tensor]:
    """[S] token ids of four lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, 320, (length,), generator=generator) for length in (3, 9, 6, 12)]


def padded_left() -> dict[str, Tensor]:
    """The prompts as one batch for `generate`."""
    seq_len = max(len(prompt) for prompt in prompts())
    tokens = torch.full((len(prompts()), seq_len), 3)
    mask = torch.zeros(len(prompts()), seq_len, dtype=torch.long)
    for row, prompt in enumerate(prompts()):
        tokens[row, -len(prompt) :] = prompt
        mask[row, -len(prompt) :] = 1
    return {"input_ids": tokens, "attention_mask": mask}


def greedy(megatron: Megatron, prompt: Tensor, z: Tensor | float) -> list[int]:
    tokens = prompt
    for _ in range(NEW_TOKENS):
        tokens = torch.cat([tokens, megatron.logps(tokens, z)[-1:].argmax(-1)])
    return tokens[len(prompt) :].tolist()


@pytest.fixture(params=HEADS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def megatron(runs: dict[str, Path], name: str) -> Iterator[Megatron]:
    with megatron_of(runs[name]) as model:
        yield model


@pytest.fixture
def exported(runs: dict[str, Path], name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(f"{runs[name]}-hf", trust_remote_code=True).eval()


def _generate(model: Any, **options: Any) -> list[list[int]]:
    batch = padded_left()
    tokens = model.generate(**batch, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **options)
    return tokens[:, batch["input_ids"].size(1) :].tolist()


def test_generate_gives_the_tokens_of_megatron(name: str, exported: Any, megatron: Megatron) -> None:
    exported.generation_config.eos_token_id = None
    weights: dict[Any, list[Tensor | None]] = {"mean": [None] * len(prompts())}
    if name != "continuous":
        weights |= {code: [torch.eye(CODES)[code]] * len(prompts()) for code in range(CODES)}
        weights["argmax"] = [torch.eye(CODES)[megatron.prior(prompt).argmax()] for prompt in prompts()]
        torch.manual_seed(5)
        drawn = exported(**padded_left(), latent="sample").code_weights
        assert drawn.sum(-1).tolist() == [1.0] * len(prompts())
        weights["sample"] = list(drawn)
    generated = {}
    for latent, mixtures in weights.items():
        torch.manual_seed(5)
        generated[latent] = _generate(exported, latent=latent)
        wanted = [
            greedy(megatron, prompt, megatron.z(prompt, mixture))
            for prompt, mixture in zip(prompts(), mixtures, strict=True)
        ]
        assert generated[latent] == wanted, latent
        torch.manual_seed(5)
        assert _generate(exported, latent=latent, use_cache=False) == wanted, latent
    without_latent = [greedy(megatron, prompt, 0.0) for prompt in prompts()]
    different = {str(tokens) for tokens in generated.values()} - {str(without_latent)}
    assert len(different) > (0 if name == "continuous" else 3), "z makes no difference, so nothing was tested"


def test_log_probs(name: str, exported: Any, megatron: Megatron) -> None:
    """Of whole sequences whose prompt ends in the middle, padded on the right."""
    sequences = [torch.cat([prompt, prompt.flip(0)]) for prompt in prompts()]
    seq_len = max(len(sequence) for sequence in sequences)
    tokens = torch.stack([torch.nn.functional.pad(tokens, (0, seq_len - len(tokens))) for tokens in sequences])
    mask = torch.stack([(torch.arange(seq_len) < len(sequence)).long() for sequence in sequences])
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts()])
    with torch.no_grad():
        out = exported(tokens, attention_mask=mask, prompt_end=ends)
        bare = exported(tokens, attention_mask=mask, prompt_end=ends, z=torch.zeros_like(out.z))
    for row, (sequence, prompt) in enumerate(zip(sequences, prompts(), strict=True)):
        z = megatron.z(prompt, None)
        torch.testing.assert_close(out.z[row], z, rtol=0, atol=1e-5)
        start = len(prompt) - 1
        found = out.logits[row, start : len(sequence)].log_softmax(-1)
        torch.testing.assert_close(found, megatron.logps(sequence, z)[start:], rtol=0, atol=1e-5)
        before = out.logits[row, :start].log_softmax(-1)
        torch.testing.assert_close(before, megatron.logps(sequence, 0.0)[:start], rtol=0, atol=1e-5)
        torch.testing.assert_close(
            bare.logits[row, : len(sequence)].log_softmax(-1), megatron.logps(sequence, 0.0), rtol=0, atol=1e-5
        )


def test_nothing_is_lost(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    original = MegatronFolder(runs[name])
    import_hf(Path(f"{runs[name]}-hf"), tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "hf")
    back = MegatronFolder(tmp_path / "megatron")
    assert back.tensors.keys() == original.tensors.keys()
    for key, info in back.tensors.items():
        zeros = (0,) * len(info.shape)
        assert torch.equal(back.read(key, zeros, info.shape), original.read(key, zeros, info.shape)), key
    assert back.description["options"]["latent"] == original.description["options"]["latent"]
    assert back.description.get("code_names") == (NAMES if name == "llama" else None)
    first, second = HFFolder(Path(f"{runs[name]}-hf")), HFFolder(tmp_path / "hf")
    assert first.config == second.config
    assert first.tensors == second.tensors
    assert all(torch.equal(first.read(key), second.read(key)) for key in first.tensors)


def test_an_import_is_evaluated_as_the_run_that_it_came_from(
    name: str, tiny_run, runs: dict[str, Path], tmp_path: Path
) -> None:
    import_hf(Path(f"{runs[name]}-hf"), tmp_path / "megatron")
    reports = []
    for number, folder in enumerate((runs[name], tmp_path / "megatron")):
        output = tmp_path / f"{number}.json"
        evaluate(["--config", tiny_run.config, "--load", str(folder), "--output", str(output), *HEADS[name]])
        reports.append(json.loads(output.read_text())["data"])
    assert reports[0] == reports[1]
    assert "prior" in reports[0]["agree"]["metrics"]


def test_scores_of_pairs(megatron: Megatron) -> None:
    """What a run trains on: the log-probs of a response, summed."""
    from megatron_lpc.model import LatentQuery

    prompt, chosen, rejected = prompts()[:3]
    pair = EncodedPair(*(tokens.tolist() for tokens in (prompt, chosen, rejected)))
    state = LatentState(tau=1.0, prior_mix=0.0, kl_weight=0.0)
    scores = megatron.model(collate([pair], [0], [0], pad_id=0), LatentQuery(sources=("prior",), state=state))
    z = megatron.z(prompt, None)
    for response, found in zip((chosen, rejected), scores.logps[0], strict=True):
        logps = megatron.logps(torch.cat([prompt, response]), z)[len(prompt) - 1 : -1]
        torch.testing.assert_close(found, logps.gather(1, response[:, None]).sum(), rtol=0, atol=1e-4)


def test_backbone_only_is_a_plain_model(name: str, runs: dict[str, Path], tmp_path: Path, megatron: Megatron) -> None:
    export_hf(runs[name], tmp_path / "hf", form="backbone")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.model_type == {"continuous": "llama", "exact": "llama"}.get(name, name)
    assert not list((tmp_path / "hf").glob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    for prompt in prompts():
        with torch.no_grad():
            logps = model(prompt[None]).logits[0].log_softmax(-1)
        torch.testing.assert_close(logps, megatron.logps(prompt, 0.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama"], indirect=True)
class TestLatentChoices:
    def test_sampling_follows_the_prior(self, exported: Any) -> None:
        tokens = prompts()[1][None]
        torch.manual_seed(0)
        with torch.no_grad():
            prior = exported(tokens).code_weights[0]
            drawn = exported(tokens.expand(4000, -1), latent="sample", logits_to_keep=1).code_weights.mean(0)
        assert (drawn - prior).abs().max() < 0.04

    def test_mixture_weights(self, exported: Any) -> None:
        weights = torch.eye(CODES)[[2, 2, 0, 1]]
        by_weights = _generate(exported, latent=weights)
        assert by_weights[:2] == _generate(exported, latent=2)[:2]
        assert by_weights[3] == _generate(exported, latent=1)[3]

    def test_beams_and_several_sequences(self, exported: Any) -> None:
        assert len(_generate(exported, latent="mean", num_beams=2)) == len(prompts())
        assert len(_generate(exported, latent="argmax", num_beams=2, num_return_sequences=2)) == 2 * len(prompts())

    @pytest.mark.parametrize(
        ("latent", "message"),
        [
            ("best", "must be 'mean'"),
            (CODES, "a code from 0 to 5"),
            (-1, "a code from 0 to 5"),
            (torch.ones(1, 2), "code weights must be"),
        ],
    )
    def test_unknown_latents(self, exported: Any, latent: Any, message: str) -> None:
        with pytest.raises(ValueError, match="latent") as error:
            _generate(exported, latent=latent)
        assert message in str(error.value)

    def test_no_sampled_beams(self, exported: Any) -> None:
        with pytest.raises(ValueError, match="no beam search"):
            _generate(exported, latent="sample", num_beams=2)

    def test_code_names(self, exported: Any, runs: dict[str, Path], tmp_path: Path) -> None:
        assert exported.config.code_names == NAMES
        with pytest.raises(ConversionError, match="--code-names: names 1 codes, the model has 6"):
            export_hf(runs["llama"], tmp_path / "hf", code_names=["one"])


def test_continuous_has_no_codes(runs: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(f"{runs['continuous']}-hf", trust_remote_code=True)
    with pytest.raises(ValueError, match="its only latent is 'mean'"):
        _generate(model, latent="argmax")


_WITHOUT_WARNINGS = """
import sys, warnings
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
tokens = torch.tensor([[5, 9, 40], [7, 8, 200]])
warnings.simplefilter("error")
model(tokens)
first = model(tokens, use_cache=True)
cache = first["cache"] if "cache" in first else first["past_key_values"]
name = "cache" if "cache" in first else "past_key_values"
model(tokens[:, :1], z=first.z, **{name: cache})
for latent in ("mean", "sample", "argmax", 2, torch.eye(6)[[0, 1]]):
    for use_cache in (True, False):
        options = {"max_new_tokens": 3, "do_sample": False, "use_cache": use_cache}
        model.generate(tokens, attention_mask=torch.ones_like(tokens), latent=latent, **options)
"""


def test_nothing_is_deprecated(runs: dict[str, Path]) -> None:
    """In a process of its own, since transformers says some things once."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_WARNINGS, f"{runs['llama']}-hf"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": None}, "needs 'latent'"),
        ({"text_config": None}, "needs 'text_config'"),
        ({"latent": {"codebook": 3}}, "latent: unknown option 'codebook'"),
        ({"latent": {"latent_mode": "none"}}, "latent_mode is none"),
        ({"code_names": ["a"]}, "must name each of the 6 codes"),
    ],
)
def test_damaged_settings(runs: dict[str, Path], tmp_path: Path, change: dict, message: str) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    for file in Path(f"{runs['llama']}-hf").iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConversionError) as error:
        import_hf(folder, tmp_path / "megatron")
    assert message in str(error.value)


def test_family_follows_from_the_options(runs: dict[str, Path]) -> None:
    assert {name: describe_megatron(path).family.model_type for name, path in runs.items()} == {
        "llama": "llama",
        "qwen3": "qwen3",
        "gemma": "gemma",
        "gemma2": "gemma2",
        "qwen3_moe": "qwen3_moe",
        "continuous": "llama",
        "exact": "llama",
    }
    assert isinstance(describe_megatron(runs["llama"]).model, ModelConfig)
