"""Every error names what is wrong, and nothing unfinished is left on disk."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_lpc.config import ConfigError
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.export_hf import export_hf
from megatron_lpc.convert.hf_folder import HFFolder, find_hf_folder
from megatron_lpc.convert.import_hf import import_hf

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def _file_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]


def _change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace a tensor in its shard; None removes it."""
    file = _file_of(folder, name)
    tensors = load_file(file)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    file.unlink()
    save_file(tensors, file)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _single_file(folder: Path, change: Callable[[dict], None] = lambda tensors: None) -> dict[str, torch.Tensor]:
    """All tensors, in one file without an index."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return tensors


def _refusal(hf: Path, output: Path, **options: Any) -> str:
    with pytest.raises(ConversionError) as error:
        import_hf(hf, output, **options)
    assert not [path for path in output.parent.iterdir() if path != hf and path.name != "megatron-kept"]
    return str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_numbers(copy: Path, tmp_path: Path, value: float) -> None:
    tensor = load_file(_file_of(copy, UP))[UP]
    tensor[3, 2] = value
    _change(copy, UP, tensor)
    message = _refusal(copy, tmp_path / "megatron")
    assert f"{UP} holds NaN or infinity" in message
    assert str(_file_of(copy, UP)) in message


def test_shape(copy: Path, tmp_path: Path) -> None:
    _change(copy, NORM, torch.ones(31))
    assert f"{NORM} has shape [31], but config.json makes it [32]" in _refusal(copy, tmp_path / "megatron")


def test_missing_and_unknown_tensors(copy: Path, tmp_path: Path) -> None:
    _single_file(copy, lambda tensors: tensors.pop(UP))
    assert f"lacks {UP}" in _refusal(copy, tmp_path / "megatron")
    shutil.move(copy / "model.safetensors", copy / "old")
    save_file(
        load_file(copy / "old") | {UP: torch.ones(48, 32), "extra.bias": torch.ones(2)}, copy / "model.safetensors"
    )
    assert "holds the unknown extra.bias" in _refusal(copy, tmp_path / "megatron")
    save_file({"model.embed_tokens.weight": torch.ones(131, 32)}, copy / "model.safetensors")
    assert "more tensors" in _refusal(copy, tmp_path / "megatron")


def test_shards(copy: Path, tmp_path: Path) -> None:
    file = _file_of(copy, UP)
    _change(copy, UP, None)
    assert f"{file}: lacks {UP}, which the index lists in it" in _refusal(copy, tmp_path / "megatron")
    file.unlink()
    assert f"{file}: no such file, but model.safetensors.index.json lists it" in _refusal(copy, tmp_path / "megatron")


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/passwd", "a/../../elsewhere.safetensors", ""])
def test_an_index_that_leads_out_of_its_folder(copy: Path, tmp_path: Path, place: str) -> None:
    shutil.copy(_file_of(copy, NORM), tmp_path / "elsewhere.safetensors")
    index = copy / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][NORM] = place
    index.write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    assert f"{index}: names" in _refusal(copy, tmp_path / "out" / "megatron")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("num_hidden_layers", 10**9, "config.json: num_hidden_layers: must be below"),
        ("num_labels", 10**9, "config.json: num_labels: must be below"),
        ("num_hidden_layers", "2", "config.json"),
        ("hidden_size", 32.5, "config.json"),
        ("model_type", ["llama"], "config.json: model_type must be text"),
        ("num_attention_heads", 0, "config.json"),
        ("rope_parameters", 3, "config.json"),
        ("vocab_size", 2**70, "config.json"),
    ],
)
def test_settings_of_other_types_or_absurd_size(
    copy: Path, tmp_path: Path, name: str, value: object, problem: str
) -> None:
    _edit(copy / "config.json", **{name: value})
    message = _refusal(copy, tmp_path / "megatron")
    assert problem in message
    assert "\n" not in message


def test_truncated_shard(copy: Path, tmp_path: Path) -> None:
    file = _file_of(copy, UP)
    file.write_bytes(file.read_bytes()[:-8])
    assert f"{file}: truncated or not a safetensors file" in _refusal(copy, tmp_path / "megatron")


def test_number_formats(copy: Path, tmp_path: Path) -> None:
    _change(copy, NORM, torch.ones(32, dtype=torch.int32))
    assert f"{NORM} is I32" in _refusal(copy, tmp_path / "megatron")


def test_mixed_dtypes_of_one_tensor(copy: Path, tmp_path: Path) -> None:
    _change(copy, UP, torch.ones(48, 32, dtype=torch.bfloat16))
    assert f"{UP} have different dtypes" in _refusal(copy, tmp_path / "megatron")
    import_hf(copy, tmp_path / "megatron", dtype=torch.float32)


def test_mixed_dtypes_are_kept(copy: Path, tmp_path: Path) -> None:
    """Narrow dtypes of odd count before wide ones: readers want each tensor aligned to its width."""
    name = "model.layers.0.input_layernorm.weight"
    _change(copy, name, torch.ones(32, dtype=torch.bfloat16))
    _change(copy, NORM, torch.full((32,), 0.5, dtype=torch.float64))
    import_hf(copy, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert (back[name].dtype, back[NORM].dtype, back[UP].dtype) == (torch.bfloat16, torch.float64, torch.float32)
    assert torch.equal(back[UP], load_file(_file_of(copy, UP))[UP])


def test_tied_weights_that_differ(copy: Path, tmp_path: Path) -> None:
    _edit(copy / "config.json", tie_word_embeddings=True)
    assert "lm_head.weight differs from model.embed_tokens.weight" in _refusal(copy, tmp_path / "megatron")


def test_settings_file(copy: Path, tmp_path: Path) -> None:
    _edit(copy / "config.json", model_type="qwen2_moe")
    assert "an expert that all tokens share" in _refusal(copy, tmp_path / "megatron")
    (copy / "config.json").write_text("[]")
    assert "must be an object" in _refusal(copy, tmp_path / "megatron")
    (copy / "config.json").unlink()
    assert "config.json: cannot be read" in _refusal(copy, tmp_path / "megatron")


def test_no_weights(copy: Path, tmp_path: Path) -> None:
    _single_file(copy)
    (copy / "model.safetensors").unlink()
    assert "holds no weights" in _refusal(copy, tmp_path / "megatron")


def _marking(path: str) -> None:
    Path(path).touch()


class _Attack:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return _marking, (str(self.mark),)


def test_pickles(copy: Path, tmp_path: Path) -> None:
    tensors = _single_file(copy)
    (copy / "model.safetensors").unlink()
    binary = copy / "pytorch_model.bin"
    torch.save(tensors | {"evil": _Attack(tmp_path / "hf" / "mark")}, binary)
    assert "not a file of plain tensors" in _refusal(copy, tmp_path / "megatron")
    assert not (tmp_path / "hf" / "mark").exists()
    torch.save(tensors | {"step": 3}, binary)
    assert "something other than named tensors" in _refusal(copy, tmp_path / "megatron")
    binary.write_bytes(pickle.dumps({"a": 1}))
    assert "not a file of plain tensors" in _refusal(copy, tmp_path / "megatron")
    torch.save(tensors, binary)
    binary.write_bytes(binary.read_bytes()[:-2000])
    assert f"{binary}: truncated" in _refusal(copy, tmp_path / "megatron")


def test_disk_space(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    assert "needs 0.00 GB and its disk has 0.00 GB free" in _refusal(copy, tmp_path / "megatron")


def test_existing_output(copy: Path, tmp_path: Path) -> None:
    kept = tmp_path / "megatron-kept"
    kept.mkdir()
    (kept / "mine").touch()
    assert "exists; choose another folder, or replace it with --force" in _refusal(copy, kept)
    assert (kept / "mine").exists()
    import_hf(copy, kept, force=True)
    assert not (kept / "mine").exists()
    assert (kept / "metadata.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "megatron-kept"]


@pytest.mark.parametrize("output", ["hf", ".", "../x/.."])
def test_output_that_holds_the_input(copy: Path, tmp_path: Path, output: str) -> None:
    target = tmp_path / output if output != "../x/.." else tmp_path / "hf" / ".." / "hf"
    with pytest.raises(ConversionError, match="holds the input"):
        import_hf(copy, target, force=True)
    assert HFFolder(copy).tensors


@pytest.mark.parametrize("direction", ["import", "export"])
def test_interrupted(
    copy: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    from megatron_lpc.convert import megatron_folder

    def interrupted(self: Any, *args: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(HFFolder, "read", interrupted)
    monkeypatch.setattr(megatron_folder.MegatronFolder, "read", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        import_hf(copy, tmp_path / "out") if direction == "import" else export_hf(checkpoint, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_leftovers_of_a_killed_conversion_go(copy: Path, tmp_path: Path) -> None:
    leftover = tmp_path / ".megatron.partial.tmp"
    leftover.mkdir()
    (leftover / "metadata.json").touch()
    import_hf(copy, tmp_path / "megatron")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "megatron"]


def test_killed_while_replacing(copy: Path, tmp_path: Path) -> None:
    """Between its last two moves the old folder has only its hidden name."""
    old = tmp_path / ".megatron.replaced.tmp"
    old.mkdir()
    (old / "mine").touch()
    with pytest.raises(ConversionError, match="exists"):
        import_hf(copy, tmp_path / "megatron")
    assert (tmp_path / "megatron" / "mine").exists()


def test_unknown_name() -> None:
    with pytest.raises(ConversionError, match="neither a folder nor a model of the Hub"):
        find_hf_folder("no/such/model")


# The other direction.


def _export_refusal(checkpoint: Path, **options: Any) -> str:
    with pytest.raises((ConversionError, ConfigError)) as error:
        export_hf(checkpoint, checkpoint.parent / "out", **options)
    assert not (checkpoint.parent / "out").exists()
    return str(error.value)


def _options(checkpoint: Path, **changes: Any) -> None:
    description = json.loads((checkpoint / "description.json").read_text())
    description["options"]["model"] |= changes
    (checkpoint / "description.json").write_text(json.dumps(description))


def test_no_checkpoint(tmp_path: Path) -> None:
    assert "no such folder" in _export_refusal(tmp_path / "nothing")


def test_no_description(checkpoint: Path) -> None:
    (checkpoint / "description.json").unlink()
    assert "lacks the options of the model" in _export_refusal(checkpoint)


def test_no_vocabulary(checkpoint: Path) -> None:
    _options(checkpoint, vocab_size=None)
    assert "lacks the vocabulary size" in _export_refusal(checkpoint)


def test_other_settings(checkpoint: Path) -> None:
    _options(checkpoint, rotary_base=123)
    assert "its --rotary-base differ from" in _export_refusal(checkpoint)
    assert "name the right one with --hf-config" in _export_refusal(checkpoint)


def test_a_checkpoint_whose_rotary_base_is_an_integer(checkpoint: Path, tmp_path: Path) -> None:
    """As all were, while the option was one."""
    _options(checkpoint, rotary_base=500000)
    export_hf(checkpoint, tmp_path / "with the original")
    shutil.rmtree(checkpoint / "hf")
    export_hf(checkpoint, tmp_path / "without")
    assert json.loads((tmp_path / "without" / "config.json").read_text())["rope_theta"] == 500000


def test_tensors_of_another_model(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "hf")
    _options(checkpoint, untie_embeddings_and_output_weights=False)
    assert "holds the unknown output_layer.weight" in _export_refusal(checkpoint)
    _options(checkpoint, untie_embeddings_and_output_weights=True, qk_layernorm=True)
    assert "lacks decoder.layers.self_attention.k_layernorm.weight" in _export_refusal(checkpoint)
    _options(checkpoint, qk_layernorm=False, ffn_hidden_size=50)
    assert (
        "decoder.layers.mlp.linear_fc1.weight has shape [2, 96, 32], but its options make it [2, 100, 32]"
        in _export_refusal(checkpoint)
    )
    _options(checkpoint, ffn_hidden_size=48, vocab_size=132)
    assert "embedding.word_embeddings.weight has shape [131, 32], but its options make it [132, 32]" in _export_refusal(
        checkpoint
    )
    _options(checkpoint, vocab_size=131, rotary_percent=0.5, use_rope_scaling=True)
    assert "no Hugging Face family has this model: none combines --rotary-percent" in _export_refusal(checkpoint)


def test_damaged_files(checkpoint: Path) -> None:
    largest = max(checkpoint.glob("*.distcp"), key=os.path.getsize)
    whole = largest.read_bytes()
    largest.write_bytes(whole[:-500])
    assert "cannot be read" in _export_refusal(checkpoint)
    largest.unlink()
    assert "a file is missing or truncated" in _export_refusal(checkpoint)
    # Torch's archive: the last tensor's bytes become NaN.
    broken = bytearray(whole)
    start = len(whole) // 2 // 4 * 4
    broken[start : start + 64] = b"\xff" * 64
    largest.write_bytes(bytes(broken))
    message = _export_refusal(checkpoint)
    assert "holds NaN or infinity" in message or "cannot be read" in message


def test_a_part_is_missing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_lpc.convert import megatron_folder

    monkeypatch.setattr(megatron_folder, "create_read_items_for_chunk_list", lambda *args: [])
    assert "only a part of" in _export_refusal(checkpoint)


# The program.


def test_the_program_ends_with_one_line(
    copy: Path, tmp_path: Path, convert_hf: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    _edit(copy / "config.json", model_type="qwen2_moe")
    assert convert_hf("import", "--hf", copy, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: config.json: model type 'qwen2_moe' cannot be converted")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"a": 1}', "must be a JSON list of strings"),
        ("[1]", "must be a JSON list of strings"),
    ],
)
def test_code_names(
    checkpoint: Path, convert_hf: Callable[..., int], capsys: pytest.CaptureFixture, content: str, message: str
) -> None:
    names = checkpoint / "names.json"
    names.write_text(content)
    assert convert_hf("export", "--load", checkpoint, "--output", checkpoint / "out", "--code-names", names) == 2
    assert message in capsys.readouterr().err


def test_code_names_without_codes(
    checkpoint: Path, convert_hf: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    (checkpoint / "names.json").write_text('["a"]')
    assert (
        convert_hf(
            "export",
            "--load",
            checkpoint,
            "--output",
            checkpoint.parent / "out",
            "--code-names",
            checkpoint / "names.json",
        )
        == 2
    )
    assert "names 1 codes, the model has 0" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["5XB", "0GB", "many"])
def test_shard_size(checkpoint: Path, convert_hf: Callable[..., int], capsys: pytest.CaptureFixture, size: str) -> None:
    assert (
        convert_hf("export", "--load", checkpoint, "--output", checkpoint.parent / "out", "--max-shard-size", size) == 2
    )
    assert f"'{size}' is not a size; write 500MB or 5GB" in capsys.readouterr().err
