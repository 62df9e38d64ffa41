"""A GGUF file as a model in Hugging Face's format: transformers reads it with the package gguf, in fp32 or as asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.convert.hf_folder import find_hf_folder
from megatron_lpc.outside.messages import reason


@contextmanager
def hf_source(path_or_name: str, dtype: torch.dtype | None = None) -> Iterator[Path]:
    """The folder of a model: as given, downloaded, or made from a GGUF file and removed when the block ends.

    Args:
        path_or_name: a folder, a name on the Hub, or a GGUF file.
        dtype: dtype of the weights of a GGUF file; fp32, which holds all that it says, when unset.

    Raises:
        ConversionError: there is no such model, or transformers cannot read the file.
    """
    path = Path(path_or_name)
    if path.exists() and path.suffix != ".gguf":
        yield path
    elif path.suffix == ".gguf":
        with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
            _dequantize(path, Path(folder), dtype or torch.float32)
            yield Path(folder)
    else:
        yield find_hf_folder(path_or_name)


def _dequantize(file: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write the model and the tokenizer in a GGUF file to a folder. Memory: the whole model."""
    if not file.is_file():
        raise ConversionError(f"{file}: no such file")
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ConversionError(
            f"{file}: transformers reads GGUF files with other packages: pip install {' '.join(missing)}"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {
        "pretrained_model_name_or_path": file.parent,
        "gguf_file": file.name,
        "trust_remote_code": False,
    }
    try:
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # The readers of GGUF raise errors of many kinds.
        raise ConversionError(f"{file}: transformers cannot read it: {reason(error)}") from error
    # What was read is marked as quantized, which transformers saves neither the weights of nor the settings as plain.
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
