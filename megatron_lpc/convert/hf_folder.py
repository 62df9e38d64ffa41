"""A model in Hugging Face's format on disk: its settings, and its tensors one at a time."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_lpc.convert.errors import ConversionError

CARRIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
)
"""Files that belong to a model beside its weights and config.json."""

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class HFFolder:
    """config.json and weights, in safetensors or pickled (`.bin`), in one file or in shards with an index."""

    def __init__(self, folder: Path) -> None:
        """Read the settings and what the files say of their tensors.

        Raises:
            ConversionError: a file is missing, truncated or not of its format; a tensor is listed where it is not.
        """
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, Path] = {}
        for file, listed in self._weight_files().items():
            found = _tensors_in(file)
            if absent := sorted(listed - found.keys()):
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
        file = self._files[name]
        if file.suffix == ".safetensors":
            # Opened for each tensor: a mapping that stays would count all that was read so far as memory in use.
            with safe_open(file, framework="pt") as opened:
                tensor = opened.get_tensor(name)
        else:
            tensor = _load_pickle(file)[name]
        if not is_finite(tensor):
            raise ConversionError(f"{file}: {name} holds NaN or infinity; the file is damaged, or training diverged")
        return tensor

    def carried_files(self) -> list[Path]:
        """Tokenizer, generation settings and the like."""
        return sorted({path for pattern in CARRIED for path in self.folder.glob(pattern) if path.is_file()})

    def _weight_files(self) -> dict[Path, set[str]]:
        """File -> tensors that an index lists in it."""
        for name in ("model.safetensors", "pytorch_model.bin"):
            index = self.folder / f"{name}.index.json"
            if index.is_file():
                files: dict[Path, set[str]] = {}
                for tensor, file in read_json(index).get("weight_map", {}).items():
                    files.setdefault(self.folder / file, set()).add(tensor)
                if missing := sorted(str(file) for file in files if not file.is_file()):
                    raise ConversionError(
                        f"{missing[0]}: no such file, but {index.name} lists it; download the missing shard"
                    )
                return files
            if (self.folder / name).is_file():
                return {self.folder / name: set()}
        raise ConversionError(
            f"{self.folder}: holds no weights (model.safetensors, pytorch_model.bin, or either with an index)"
        )


def find_hf_folder(path_or_name: str) -> Path:
    """A folder as it is, or the local copy of a model on the Hub, downloaded where there is none yet.

    Raises:
        ConversionError: neither a folder nor a model that can be downloaded.
    """
    if Path(path_or_name).is_dir():
        return Path(path_or_name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json", "*.py", *CARRIED]
    try:
        return Path(snapshot_download(path_or_name, allow_patterns=patterns))
    except (OSError, ValueError, HFValidationError) as error:
        raise ConversionError(
            f"{path_or_name}: neither a folder nor a model of the Hub that can be downloaded ({error})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises ConversionError when the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: must hold a JSON object")
    return content


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. Needs no memory: the largest and the smallest tell."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def _tensors_in(file: Path) -> dict[str, TensorInfo]:
    if file.suffix != ".safetensors":
        return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in _load_pickle(file).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
            for name, part in parts.items():
                if part.get_dtype() not in _FLOATS:
                    raise ConversionError(
                        f"{file}: {name} is {part.get_dtype()}; weights must be one of {', '.join(_FLOATS)}"
                    )
            return {
                name: TensorInfo(tuple(part.get_shape()), _FLOATS[part.get_dtype()]) for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{file}: truncated or no safetensors file ({error}); download it again") from error


def _load_pickle(file: Path) -> dict[str, Tensor]:
    """Tensors alone, mapped from the file: nothing else in a pickle is read."""
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(
            f"{file}: truncated, or no file of plain tensors ({reason}); give the model in safetensors"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConversionError(f"{file}: holds something other than named tensors; give the model in safetensors")
    return content
