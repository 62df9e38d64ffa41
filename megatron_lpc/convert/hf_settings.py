"""config.json as files on disk have it, made plain: what transformers ignores is dropped, numbers are numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_lpc.convert.errors import ConversionError
from megatron_lpc.outside import json_text
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.outside.model_settings import check_sizes


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder's config.json, which an import also writes beside the checkpoint.

    `"quantization_config": null` is dropped, and a base of RoPE that is a string becomes a number: transformers takes
    both and cannot compute with the latter.

    Raises:
        ConversionError: the file is missing or does not hold a JSON object, such a base is no number, or a size is
            larger than any.
    """
    path = folder / "config.json"
    settings = read_json(path)
    try:
        check_sizes(settings, str(path))
    except Malformed as error:
        raise ConversionError(error) from error
    _make_plain(path, settings)
    return settings


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConversionError: the file is missing or does not hold a JSON object.
    """
    try:
        content: dict[str, Any] = json_text.read_json(path)
    except Malformed as error:
        raise ConversionError(error) from error
    return content


def _make_plain(path: Path, settings: dict[str, Any]) -> None:
    # Nested too: `text_config`, `rope_scaling`, and `rope_parameters`, of which some models have one per kind of layer.
    for part in settings.values():
        if isinstance(part, dict):
            _make_plain(path, part)
    if settings.get("quantization_config", 0) is None:
        del settings["quantization_config"]
    for name in ("rope_theta", "rope_local_base_freq"):
        base = settings.get(name)
        if isinstance(base, str):
            try:
                settings[name] = float(base)
            except ValueError as error:
                raise ConversionError(f"{path}: {name} '{base}' is not a number") from error
