"""config.json as files on disk have it, made plain: what transformers ignores is dropped, numbers are numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_lpc.convert.errors import ConversionError


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder's config.json, which an import also writes beside the checkpoint.

    `"quantization_config": null` is dropped, and a base of RoPE that is a string becomes a number: transformers takes
    both and cannot compute with the latter.

    Raises:
        ConversionError: the file is missing or does not hold a JSON object, or such a base is no number.
    """
    path = folder / "config.json"
    settings = read_json(path)
    _make_plain(path, settings)
    return settings


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
