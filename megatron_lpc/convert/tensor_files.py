"""Files of tensors in Hugging Face's two formats: what they hold, without reading all of it."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.outside.messages import reason

SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Name in a safetensors header -> dtype, for the dtypes that weights may have."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def list_tensors(file: Path) -> dict[str, TensorInfo]:
    """Every tensor in a safetensors file or a pickle.

    Raises:
        ConversionError: the file is truncated or not of its format, or a tensor is not of a floating-point dtype.
    """
    if file.suffix == ".safetensors":
        return _list_safetensors(file)
    _check_is_stored(file)
    return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in _load_pickle(file).items()}


def read_tensor(file: Path, name: str) -> Tensor:
    """One tensor, in memory of its own or mapped from its file.

    Raises:
        ConversionError: it holds a value that is not finite, or a pickle cannot be read.
    """
    if file.suffix == ".safetensors":
        # Opened for each tensor: a mapping that stays would count all that was read so far as memory in use.
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_tensor(name)
    else:
        tensor = _load_pickle(file)[name]
    if not is_finite(tensor):
        raise ConversionError(f"{file}: {name} holds NaN or infinity; the file is damaged, or training diverged")
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. It looks at the largest and the smallest only, which needs no memory."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def _list_safetensors(file: Path) -> dict[str, TensorInfo]:
    found = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is not a dict)
                tensor = opened.get_slice(name)
                dtype = tensor.get_dtype()
                if dtype not in SAFETENSORS_DTYPES:
                    known = ", ".join(SAFETENSORS_DTYPES)
                    raise ConversionError(f"{file}: {name} is {dtype}; weights must be one of {known}")
                found[name] = TensorInfo(tuple(tensor.get_shape()), SAFETENSORS_DTYPES[dtype])
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{file}: truncated or not a safetensors file ({reason(error)}); download it again"
        ) from error
    return found


def _load_pickle(file: Path) -> dict[str, Tensor]:
    """Tensors mapped from the file; a pickle that holds anything else is refused and runs no code."""
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # What a damaged pickle raises is not bounded.
        raise ConversionError(
            f"{file}: truncated, or not a file of plain tensors ({reason(error)}); give the model in safetensors"
        ) from error
    is_named = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point() and not value.is_sparse
        for name, value in content.items()
    )
    if not is_named:
        raise ConversionError(f"{file}: holds something other than named tensors; give the model in safetensors")
    return content


def _check_is_stored(file: Path) -> None:
    """Refuse a file of torch that unpacks to more than its own size; torch itself never compresses."""
    try:
        with zipfile.ZipFile(file) as packed:
            if sum(part.file_size for part in packed.infolist()) <= file.stat().st_size:
                return
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # `_load_pickle` says what is wrong with it.
    raise ConversionError(f"{file}: unpacks to more than its size, as torch writes none; give the model in safetensors")
