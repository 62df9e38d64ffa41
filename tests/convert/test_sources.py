"""Models as people have them: leftovers beside the weights, adapters, GGUF, numbers as text, added tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.utils import filter_repo_objects
from models import make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_lpc.convert.description import describe_megatron
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.gguf_file import hf_source
from megatron_lpc.convert.hf_folder import HFFolder, find_hf_folder
from megatron_lpc.convert.hf_settings import read_settings
from megatron_lpc.convert.import_hf import import_hf
from megatron_lpc.convert.logits import hf_logits
from megatron_lpc.train import main as train

NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_single_file_goes_before_a_stale_index(copy: Path, capsys: pytest.CaptureFixture) -> None:
    """As in transformers; `save_pretrained` of a smaller model leaves the index of the larger one."""
    tensors = {name: tensor for file in copy.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file(tensors | {NORM: torch.full((32,), 7.0)}, copy / "model.safetensors", metadata={"format": "pt"})
    assert HFFolder(copy).read(NORM)[0] == 7
    assert "takes model.safetensors, as transformers does, and ignores" in capsys.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(copy).state_dict()[NORM][0] == 7


def test_null_quantization_config_and_a_theta_of_text(copy: Path, tmp_path: Path) -> None:
    before = hf_logits(copy, [torch.tensor([[1, 5, 9]])])[0]
    _edit(copy, quantization_config=None, rope_theta="5e5")
    import_hf(copy, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "back")
    for folder in (copy, tmp_path / "back"):
        assert torch.equal(hf_logits(folder, [torch.tensor([[1, 5, 9]])])[0], before)
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["rope_theta"] == 500000.0
    assert "quantization_config" not in back
    _edit(copy, rope_theta="many")
    with pytest.raises(ConversionError, match="rope_theta 'many' is not a number"):
        import_hf(copy, tmp_path / "other")


@pytest.mark.parametrize("theta", [77.7, 10000, 10000.0])
def test_theta_is_any_number_and_stays_as_it_is_written(
    copy: Path, tmp_path: Path, convert_hf: Callable[..., int], theta: float
) -> None:
    _edit(copy, rope_theta=theta)
    import_hf(copy, tmp_path / "megatron")
    assert describe_megatron(tmp_path / "megatron").model.rotary_base == theta
    assert convert_hf("verify", copy, tmp_path / "megatron") == 0
    export_hf(tmp_path / "megatron", tmp_path / "back")
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert repr(back["rope_theta"]) == repr(theta)


def test_a_theta_of_text_is_a_number_wherever_it_stands(tmp_path: Path) -> None:
    rope = {"full_attention": {"rope_theta": "1e6"}, "sliding_attention": {"rope_theta": 1e4}}
    settings = {
        "text_config": {"rope_parameters": rope},
        "rope_scaling": {"rope_theta": "5e5"},
        "rope_local_base_freq": "77.5",
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    read = read_settings(tmp_path)
    assert read["text_config"]["rope_parameters"]["full_attention"]["rope_theta"] == 1e6
    assert read["rope_scaling"]["rope_theta"] == 5e5
    assert read["rope_local_base_freq"] == 77.5


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_refused_with_the_command_that_merges_it(copy: Path, tmp_path: Path, whole: bool) -> None:
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    if not whole:
        (copy / "config.json").unlink()
    with pytest.raises(ConversionError, match="holds an adapter of some/base") as error:
        import_hf(copy, tmp_path / "megatron")
    assert "merge_and_unload().save_pretrained('MERGED')" in str(error.value)


def test_gguf_without_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.Q4_K_M.gguf").touch()
    with pytest.raises(ConversionError, match=r"holds GGUF files and no config\.json; name one of the files"):
        HFFolder(tmp_path)
    monkeypatch.setattr("megatron_lpc.convert.gguf_file.find_spec", lambda name: None)
    with (
        pytest.raises(ConversionError, match="pip install gguf accelerate"),
        hf_source(str(tmp_path / "model.Q4_K_M.gguf")),
    ):
        pass


def test_gguf(tmp_path: Path, convert_hf: Callable[..., int]) -> None:
    """A file with a model of one layer; the same weights come out."""
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "tiny.gguf"
    tensors = _write_gguf(gguf, file)
    assert convert_hf("import", "--hf", file, "--output", tmp_path / "megatron") == 0
    assert convert_hf("verify", file, tmp_path / "megatron") == 0
    export_hf(tmp_path / "megatron", tmp_path / "back")
    back = HFFolder(tmp_path / "back")
    assert "quantization_config" not in back.config
    for name, ours in (("token_embd", EMBEDDING), ("blk.0.ffn_up", "model.layers.0.mlp.up_proj.weight")):
        assert torch.equal(back.read(ours), tensors[name])


def _write_gguf(gguf: Any, file: Path) -> dict[str, torch.Tensor]:
    tokens = ["<unk>", "<s>", "</s>", "ab", *(chr(code) for code in range(97, 123))]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "token_embd": (len(tokens), 32),
        "output": (len(tokens), 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (48, 32),
        "blk.0.ffn_up": (48, 32),
        "blk.0.ffn_down": (32, 48),
    }
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_only_the_needed_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a Mistral, a Llama and a repository with other formats."""
    asked: dict[str, Any] = {}

    def download(name: str, **patterns: Any) -> str:
        asked.update(patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    find_hf_folder("mistralai/Mistral-7B-v0.3")
    needed = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00003.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    other = [
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "original/consolidated.00.pth",
        "original/tokenizer.model",
        "onnx/model.safetensors",
        "pytorch_model.bin",
        "params.json",
        "README.md",
        "model.Q4_K_M.gguf",
        "modeling_custom.py",
    ]
    assert sorted(filter_repo_objects(needed + other, **asked)) == sorted(needed)


def test_more_token_ids_than_rows(
    copy: Path, tmp_path: Path, convert_hf: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    """A tokenizer with an added token: 32001 ids and 32000 rows, in small."""
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens([f"<{number}>" for number in range(140 - len(tokenizer))])
    tokenizer.save_pretrained(copy)
    assert convert_hf("import", "--hf", copy, "--output", tmp_path / "short") == 0
    assert "the tokenizer has 140 token ids and the embedding fewer" in capsys.readouterr().err
    flags = ("--hf", copy, "--resize-token-embeddings")
    assert convert_hf("import", *flags, "--output", tmp_path / "megatron") == 0
    assert convert_hf("import", *flags, "130", "--output", tmp_path / "less") == 2
    assert "has 131 token ids, and none is taken away" in capsys.readouterr().err
    export_hf(tmp_path / "megatron", tmp_path / "back")
    before, after = HFFolder(copy), HFFolder(tmp_path / "back")
    assert after.config["vocab_size"] == 140
    for name in (EMBEDDING, "lm_head.weight"):
        old, new = before.read(name), after.read(name)
        assert torch.equal(new[:131], old)
        torch.testing.assert_close(new[131:], old.mean(0).expand(9, -1))
    assert convert_hf("verify", tmp_path / "megatron", tmp_path / "back") == 0


def test_training_on_added_tokens(tiny_run, tmp_path: Path) -> None:
    hf = make_model(tmp_path / "hf", "llama3.2", sizes={"vocab_size": 319})
    import_hf(hf, tmp_path / "megatron", vocab_size=320)
    options = yaml.safe_load(Path(tiny_run.config).read_text())
    options |= yaml.safe_load((tmp_path / "megatron" / "model.yaml").read_text())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    flags = ["--pretrained-checkpoint", str(tmp_path / "megatron"), "--save", str(tmp_path / "run")]
    train(["--config", str(tmp_path / "run.yaml"), "--train-iters", "1", *flags])
    export_hf(tmp_path / "run", tmp_path / "back", form="backbone")
    assert HFFolder(tmp_path / "back").tensors[EMBEDDING].shape == (320, 32)
