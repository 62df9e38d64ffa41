"""A model in Hugging Face's format on disk: its settings, and its tensors one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_lpc.convert.companions import DOWNLOADED
from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.tensor_files import TensorInfo, list_tensors, read_tensor


class HFFolder:
    """config.json and weights, in safetensors or pickled (`.bin`), in one file or in shards with an index."""

    def __init__(self, folder: Path) -> None:
        """Read the settings, and from each file of weights what tensors it holds.

        Raises:
            ConversionError: a file is missing, truncated or not of its format; or a tensor is not in the file that the
                index names.
        """
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder / "config.json")
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
        return Path(snapshot_download(path_or_name, allow_patterns=list(DOWNLOADED)))
    except (OSError, ValueError, HFValidationError) as error:
        raise ConversionError(
            f"{path_or_name}: neither a folder nor a model of the Hub that can be downloaded ({error})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConversionError: the file is missing or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: must hold a JSON object")
    return content


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """File -> names of the tensors that an index lists in it; an empty set without an index."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _indexed_files(index)
        if (folder / name).is_file():
            return {folder / name: set()}
    raise ConversionError(f"{folder}: holds no weights (model.safetensors, pytorch_model.bin, or either with an index)")


def _indexed_files(index: Path) -> dict[Path, set[str]]:
    files: dict[Path, set[str]] = {}
    for tensor, file in read_json(index).get("weight_map", {}).items():
        files.setdefault(index.parent / file, set()).add(tensor)
    missing = sorted(str(file) for file in files if not file.is_file())
    if missing:
        raise ConversionError(f"{missing[0]}: no such file, but {index.name} lists it; download the missing shard")
    return files
