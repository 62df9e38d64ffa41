"""A model in Hugging Face's format on disk: its settings, and its tensors one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_lpc.command_line import warn
from megatron_lpc.convert.companions import DOWNLOADED
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.hf_settings import read_json, read_settings
from megatron_lpc.convert.tensor_files import TensorInfo, list_tensors, read_tensor
from megatron_lpc.outside.files import inside
from megatron_lpc.outside.json_text import read_object
from megatron_lpc.outside.messages import Malformed, reason


class HFFolder:
    """config.json and weights, in safetensors or pickled (`.bin`), in one file or in shards with an index."""

    def __init__(self, folder: Path) -> None:
        """Read the settings, and from each file of weights what tensors it holds.

        Raises:
            ConversionError: a file is missing, truncated or not of its format; a tensor is not in the file that the
                index names; or the folder holds an adapter or a GGUF file in the place of a model.
        """
        self.folder = folder
        check_is_model(folder)
        self.config: dict[str, Any] = read_settings(folder)
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        for file, indexed in _weight_files(folder).items():
            found = list_tensors(file)
            absent = sorted(indexed - found.keys())
            if absent:
                raise ConversionError(
                    f"{file}: lacks {absent[0]}, which the index lists in it; download the file again"
                )
            self.tensors |= found
            self._files |= dict.fromkeys(found, file)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own or mapped from its file.

        Raises:
            ConversionError: it holds a value that is not finite.
        """
        return read_tensor(self._files[name], name)


def find_hf_folder(path_or_name: str) -> Path:
    """The given folder, or the local copy of a model on the Hub, downloaded if there is none yet.

    Raises:
        ConversionError: neither a folder nor a model that can be downloaded.
    """
    if Path(path_or_name).is_dir():
        return Path(path_or_name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        # Folders within hold the same weights in other formats (`original/`, `onnx/`).
        return Path(snapshot_download(path_or_name, allow_patterns=list(DOWNLOADED), ignore_patterns=["*/*"]))
    except (OSError, ValueError, HFValidationError) as error:
        raise ConversionError(
            f"{path_or_name}: neither a folder nor a model of the Hub that can be downloaded ({reason(error)})"
        ) from error


def check_is_model(folder: Path) -> None:
    """Refuse a folder with weights of another kind, with the command that makes a model of them.

    Raises:
        ConversionError: it holds an adapter of peft, or only GGUF files.
    """
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        raise ConversionError(
            f"{folder}: holds an adapter of {base} (adapter_config.json), not a whole model; merge it: "
            f'python -c "from peft import AutoPeftModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').merge_and_unload().save_pretrained('MERGED')\", "
            "and copy the tokenizer there; if this folder is merged already, remove adapter_config.json"
        )
    if not (folder / "config.json").exists() and any(folder.glob("*.gguf")):
        raise ConversionError(f"{folder}: holds GGUF files and no config.json; name one of the files")


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """File -> names of the tensors that an index lists in it; an empty set without an index.

    As in transformers, a single file goes before an index beside it, which an earlier save has left.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            if index.is_file():
                warn(f"{folder}: takes {name}, as transformers does, and ignores {index.name} and its shards")
            return {folder / name: set()}
        if index.is_file():
            return _indexed_files(index)
    raise ConversionError(f"{folder}: holds no weights (model.safetensors, pytorch_model.bin, or either with an index)")


def _indexed_files(index: Path) -> dict[Path, set[str]]:
    files: dict[Path, set[str]] = {}
    try:
        named = read_object(index, {"weight_map": dict[str, str]})["weight_map"]
        for tensor, file in named.items():
            files.setdefault(inside(index.parent, file, str(index)), set()).add(tensor)
    except Malformed as error:
        raise ConversionError(error) from error
    missing = sorted(str(file) for file in files if not file.is_file())
    if missing:
        raise ConversionError(f"{missing[0]}: no such file, but {index.name} lists it; download the missing shard")
    return files
