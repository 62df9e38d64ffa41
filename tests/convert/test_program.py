"""The four commands as a user gives them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.open_model import open_model
from megatron_lpc.convert.program import parser
from megatron_lpc.convert.verify import verify

Program = Callable[..., int]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("start", [["-m", "megatron_lpc.convert"], [str(ROOT / "tools" / "convert_hf.py")]])
def test_every_way_to_start_it_is_the_same_program(start: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    done = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == parser().format_help()
    for command in ("import", "export", "verify", "inspect"):
        assert command in done.stdout


def test_conversion_needs_neither_engine_nor_model() -> None:
    """Beside the options: the tokenizer, names and checksums of files of a checkpoint. Only `verify` builds a model."""
    listing = "import sys, megatron_lpc.convert.program; print(*(n for n in sys.modules if n.startswith('megatron')))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {name for name in loaded if not name.startswith("megatron_lpc")}
    parts = {name for name in loaded if name.startswith(("megatron_lpc.data.", "megatron_lpc.training."))}
    names = ("checkpoint_folder", "checkpoint_integrity", "checkpoint_description", "tensor_index", "state")
    of_training = {f"megatron_lpc.training.{name}" for name in names}
    assert parts == {"megatron_lpc.data.tokenizer", *of_training}
    rooms = {"losses", "model", "evaluation"}
    assert not {name for name in loaded if name.split(".")[1:2] and name.split(".")[1] in rooms}


def test_unreadable_text(llama: Path, convert_hf: Program, capsys: pytest.CaptureFixture) -> None:
    assert convert_hf("verify", llama, llama, "--text", llama / "nothing.txt") == 2
    assert "nothing.txt: cannot be read" in capsys.readouterr().err


def test_there_and_back(llama: Path, tmp_path: Path, convert_hf: Program, capsys: pytest.CaptureFixture) -> None:
    (llama / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    assert convert_hf("import", "--hf", llama, "--output", megatron) == 0
    assert "--pretrained-checkpoint" in capsys.readouterr().out
    assert convert_hf("export", "--load", megatron, "--output", back, "--max-shard-size", "30KB") == 0
    files = {path.name for path in back.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    } <= files
    assert json.loads((back / "generation_config.json").read_text())["temperature"] == 0.5
    assert all(path.stat().st_size < 31_000 for path in back.glob("*.safetensors"))
    text = "a stitch in time"
    assert AutoTokenizer.from_pretrained(back)(text) == AutoTokenizer.from_pretrained(llama)(text)
    data = yaml.safe_load((megatron / "model.yaml").read_text())["data"]
    assert AutoTokenizer.from_pretrained(data["tokenizer_model"])(text) == AutoTokenizer.from_pretrained(llama)(text)
    assert convert_hf("verify", llama, megatron) == 0
    assert convert_hf("verify", megatron, back, "--text", llama / "config.json") == 0
    assert "The same model: all 21 tensors are equal to the bit" in capsys.readouterr().out
    assert convert_hf("export", "--load", megatron, "--output", back) == 2
    assert convert_hf("export", "--load", megatron, "--output", back, "--force", "--dtype", "bfloat16") == 0
    assert (back / "model.safetensors").is_file()
    capsys.readouterr()
    assert convert_hf("verify", megatron, back) == 0
    assert "They agree: no relative difference is above 0.04" in capsys.readouterr().out
    assert convert_hf("verify", megatron, back, "--tolerance", "1e-5") == 1
    assert "differ by more than the relative difference 1e-05: " in capsys.readouterr().err


def test_verify_names_what_differs(copy: Path, llama: Path, convert_hf: Program, capsys: pytest.CaptureFixture) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    file = copy / json.loads((copy / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name][1, 2] += 0.25
    save_file(tensors, file)
    assert convert_hf("verify", llama, copy) == 1
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if name in line)
    assert "0.25" in row
    assert "logits of real text" in out


def test_verify_sees_a_wrong_setting(copy: Path, llama: Path) -> None:
    """All tensors are equal, but the models are not."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    comparison = verify(open_model(llama), open_model(copy))
    assert {difference.absolute for difference in comparison.tensors.values()} == {0.0}
    assert comparison.options == ["--norm-epsilon"]
    assert not comparison.agrees()


def test_verify_without_tokenizer(copy: Path, llama: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert verify(open_model(copy), open_model(copy)).token_source == "random token ids, without a tokenizer"
    assert verify(open_model(copy), open_model(llama)).token_source == "real text"


def test_verify_refuses_what_cannot_be_compared(copy: Path, llama: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 132}))
    tensors = {key: value for file in copy.glob("*.safetensors") for key, value in load_file(file).items()}
    for file in copy.glob("*.safetensors*"):
        file.unlink()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[key] = torch.cat([tensors[key], tensors[key][:1]])
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ConversionError, match="different vocabulary sizes, 131 and 132"):
        verify(open_model(llama), open_model(copy))


def test_inspect(llama: Path, imported: Path, convert_hf: Program, capsys: pytest.CaptureFixture) -> None:
    for folder, kind in ((llama, "Hugging Face"), (imported, "megatron-core checkpoint")):
        assert convert_hf("inspect", folder) == 0
        out = capsys.readouterr().out
        for part in (
            kind,
            "llama (LlamaForCausalLM)",
            "2, 32, 48",
            "131 token ids, LM head with its own weights",
            "float32",
            "500000",
        ):
            assert part in out, part


def test_inspect_nothing(tmp_path: Path, convert_hf: Program, capsys: pytest.CaptureFixture) -> None:
    assert convert_hf("inspect", tmp_path) == 2
    assert "neither a Hugging Face model (config.json) nor a checkpoint" in capsys.readouterr().err


def test_inspect_a_run(tiny_run, tmp_path: Path, convert_hf: Program, capsys: pytest.CaptureFixture) -> None:
    from megatron_lpc.train import main as train

    train(["--config", tiny_run.config, "--save", str(tmp_path / "run"), "--train-iters", "2"])
    capsys.readouterr()
    assert convert_hf("inspect", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "2 of 2, 16 pairs seen" in out
    assert "6 codes without names, posterior reads difference" in out
    assert "device cpu" in out
    assert convert_hf("export", "--load", tmp_path / "run", "--output", tmp_path / "hf") == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 3)
    assert (tmp_path / "hf" / "words.model").is_file()
    capsys.readouterr()
    assert convert_hf("verify", tmp_path / "run", tmp_path / "hf") == 0
