"""Query groups of zeros: the same model, which tensor parallel ranks divide, and which is trained as the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from launch import torchrun
from models import MODELS, make_model, prompts

from megatron_lpc.config import load_yaml
from megatron_lpc.convert import import_hf as importing
from megatron_lpc.convert.description import describe_megatron
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.convert.logits import hf_logits, megatron_logits
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.train import main as train
from megatron_lpc.training.metrics_file import read_metrics
from megatron_lpc.training.setup import stop_distributed

ODD = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}
"""Two query heads in each of three groups."""
CASES = {
    "llama2": {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3},  # Every head is a group.
    **dict.fromkeys(("llama3.2", "mistral", "qwen2", "qwen3", "smollm3", "phi3"), ODD),
    **dict.fromkeys(("olmo2", "gemma", "gemma2", "gemma3", "mixtral", "qwen3_moe"), ODD),
}
"""Of every family one model, with three query groups."""


def test_every_family_has_a_case() -> None:
    assert {MODELS[name]["model_type"] for name in CASES} == {row["model_type"] for row in MODELS.values()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME/hf, and NAME/megatron, imported from it with a fourth query group."""
    folder = tmp_path_factory.mktemp("padded")
    for name, sizes in CASES.items():
        make_model(folder / name / "hf", name, sizes=sizes)
        import_hf(folder / name / "hf", folder / name / "megatron", query_groups_multiple=2)
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> Path:
    """The same folder, with the logits of two tensor parallel ranks."""
    torchrun(2, Path(__file__).parent / "logits_worker.py", str(folder), "tp2")
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("name", CASES)
def test_logits(two_ranks: Path, name: str) -> None:
    checkpoint = two_ranks / name / "megatron"
    model = describe_megatron(checkpoint).stored_model
    assert (model.num_query_groups, model.padded_query_groups) == (4, 1)
    assert model.num_attention_heads == CASES[name]["num_attention_heads"] * 4 // 3
    assert load_yaml(checkpoint / "model.yaml").model == model
    wanted = hf_logits(two_ranks / name / "hf", prompts())
    for found in (
        megatron_logits(checkpoint, model, prompts()),
        torch.load(two_ranks / name / "logits-tp2.pt", weights_only=True),
    ):
        for one, other in zip(found, wanted, strict=True):
            assert float((one - other).abs().max()) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_export_gives_back_every_bit(folder: Path, tmp_path: Path, name: str) -> None:
    export_hf(folder / name / "megatron", tmp_path / "hf")
    original, back = HFFolder(folder / name / "hf"), HFFolder(tmp_path / "hf")
    assert back.tensors == original.tensors
    for tensor in original.tensors:
        assert torch.equal(back.read(tensor), original.read(tensor)), tensor
    sizes = ("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
    assert {size: back.config.get(size) for size in sizes} == {size: original.config.get(size) for size in sizes}


def test_program(
    folder: Path, tmp_path: Path, convert_hf: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    hf, megatron = folder / "qwen2" / "hf", tmp_path / "megatron"
    assert convert_hf("import", "--hf", hf, "--output", megatron, "--make-query-groups-divisible-by", 5) == 0
    assert "with 2 query groups of zeros" in capsys.readouterr().out
    for models in ((hf, megatron), (megatron, hf), (megatron, folder / "qwen2" / "megatron")):
        assert convert_hf("verify", *models) == 0
        printed = capsys.readouterr().out
        assert (
            "The same model: all 27 tensors are equal to the bit, and so are the options. Logits differ by" in printed
        )
    assert convert_hf("inspect", megatron) == 0
    printed = capsys.readouterr().out
    assert "6 of size 8, 3 key and value heads" in printed
    assert "padded query groups" in printed
    assert convert_hf("import", "--hf", hf, "--output", tmp_path / "other", "--make-query-groups-divisible-by", 0) == 2
    assert "--make-query-groups-divisible-by 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tensor", ["linear_qkv.weight", "linear_qkv.bias", "linear_proj.weight", "q_layernorm.weight", "k_layernorm.weight"]
)
def test_padding_that_is_not_zero_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: str
) -> None:
    name = "olmo2" if "layernorm" in tensor else "qwen2"
    axis = int("proj" in tensor)
    megatron = tmp_path / "megatron"
    whole = MegatronFolder(folder / name / "megatron").tensors[f"decoder.layers.self_attention.{tensor}"].shape[1:]

    def damaged(made: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        made = padded_to(made, shape)
        if shape == whole and made.is_contiguous():
            made.select(axis, -1)[...] = 1e-7
        return made

    padded_to = importing.padded_to
    monkeypatch.setattr(importing, "padded_to", damaged)
    import_hf(folder / name / "hf", megatron, query_groups_multiple=2)
    with pytest.raises(ConversionError) as error:
        export_hf(megatron, tmp_path / "hf")
    assert f"self_attention.{tensor}[0] is not 0 in the query groups that --padded-query-groups 1" in str(error.value)
    assert not (tmp_path / "hf").exists()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "processes", "stated"), [("qwen2", 1, "padded"), ("qwen3_moe", 1, "plain"), ("olmo2", 2, "plain")]
)
def test_training_leaves_the_padding_zero(tiny_run, tmp_path: Path, name: str, processes: int, stated: str) -> None:
    """And learns what the original does in one process, whether the run states the padding of the checkpoint or not."""
    hf = make_model(tmp_path / "hf", name, sizes={**ODD, "vocab_size": 320})
    import_hf(hf, tmp_path / "plain")
    import_hf(hf, tmp_path / "padded", query_groups_multiple=2)
    options = yaml.safe_load(Path(tiny_run.config).read_text())
    for folder in ("plain", "padded"):
        model = yaml.safe_load((tmp_path / folder / "model.yaml").read_text())
        (tmp_path / f"{folder}.yaml").write_text(yaml.safe_dump(options | model | {"data": options["data"]}))

    def run_flags(folder: str, config: str) -> list[str]:
        return [
            *("--config", str(tmp_path / f"{config}.yaml"), "--pretrained-checkpoint", str(tmp_path / folder)),
            *("--save", str(tmp_path / f"{folder}-run"), "--train-iters", "3", "--weight-decay", "0.1"),
        ]

    train(run_flags("plain", "plain"))
    flags = [*run_flags("padded", stated), "--tensor-model-parallel-size", str(processes)]
    if processes == 1:
        train(flags)
    else:
        torchrun(processes, "-m", "megatron_lpc.train", *flags)

    metrics = {
        folder: list(read_metrics(tmp_path / f"{folder}-run" / "metrics.jsonl")) for folder in ("plain", "padded")
    }
    for number in range(3):
        for metric in ("loss", "grad_norm"):
            wanted, found = (metrics[folder][number][metric] for folder in ("plain", "padded"))
            assert found == pytest.approx(wanted, rel=1e-5)

    trained = MegatronFolder(tmp_path / "padded-run")
    width = load_yaml(tmp_path / "padded.yaml").model.kv_channels
    beyond = {"linear_qkv.weight": 3 * 4 * width, "linear_proj.weight": 6 * width}
    beyond |= {"linear_qkv.bias": 3 * 4 * width} if name == "qwen2" else {}
    beyond |= {"q_layernorm.weight": 6 * width, "k_layernorm.weight": 3 * width} if name == "olmo2" else {}
    for part, start in beyond.items():
        tensor = f"decoder.layers.self_attention.{part}"
        shape = trained.tensors[tensor].shape
        values = trained.read(tensor, (0,) * len(shape), shape).movedim(-1 if "proj" in part else 1, 0)
        assert values[:start].any()
        assert len(values) == start * 4 // 3
        assert not values[start:].any()

    for folder in ("plain", "padded"):
        export_hf(tmp_path / f"{folder}-run", tmp_path / f"{folder}-hf", form="backbone")
    export_hf(tmp_path / "padded-run", tmp_path / "with-head")
    before, plain, padded = (HFFolder(tmp_path / folder) for folder in ("hf", "plain-hf", "padded-hf"))
    assert before.tensors == plain.tensors == padded.tensors
    for tensor in before.tensors:
        assert (padded.read(tensor) - plain.read(tensor)).abs().max() < 1e-4
    assert json.loads((tmp_path / "with-head" / "config.json").read_text())["text_config"]["num_key_value_heads"] == 3


def test_fresh_weights_have_no_padding(tiny_run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(["--config", tiny_run.config, "--padded-query-groups", "1", "--kv-channels", "8"])
    stop_distributed()
    assert "--padded-query-groups 1: counts zeros of an imported model" in capsys.readouterr().err
