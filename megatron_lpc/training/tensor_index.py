"""torch's index of the tensors in a checkpoint, `.metadata`: a pickle of plain records."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_lpc.config import ConfigError
from megatron_lpc.outside.files import is_plain_name
from megatron_lpc.outside.messages import Malformed, brief
from megatron_lpc.outside.plain_pickle import read_pickle
from megatron_lpc.outside.typed import MAX_INTEGER

INDEX = ".metadata"
_RECORDS = re.compile(
    r"torch\.distributed\.checkpoint\.metadata\."
    r"(\w+Metadata|Metadata|MetadataIndex|StorageMeta|TensorProperties|_MEM_FORMAT_ENCODING)"
    r"|torch\.distributed\.checkpoint\.planner\.(SavePlan|WriteItem|WriteItemType|TensorWriteData|BytesIOWriteData)"
    r"|torch\.distributed\.checkpoint\.filesystem\.(_StorageInfo|_StoragePrefix)"
    r"|megatron\.core\.dist_checkpointing\.strategies\.torch\.(MCoreMetadata|MCoreSavePlan)"
    r"|torch\.(Size|bool|b?float\w*|u?int\d+|serialization\._get_layout)|collections\.OrderedDict"
)
"""Records, enumerations, shapes and data types."""


def read_tensor_index(folder: Path) -> Metadata:
    """The index of a checkpoint.

    torch loads this pickle without restriction. Here it may hold nothing but plain data, so call this before torch
    reads it.

    Raises:
        ConfigError: it cannot be read, would run code, or holds something else than an index.
    """
    path = folder / INDEX
    try:
        index = read_pickle(path, _RECORDS)
        problem = next(_problems(index), None)
        if problem is not None:
            raise Malformed(f"{path}: {problem}")
    except Malformed as error:
        raise ConfigError(
            f"{error}: not an index of tensors; this is no torch_dist checkpoint, or it is damaged"
        ) from error
    found: Metadata = index
    return found


def file_ends(index: Metadata) -> dict[str, int]:
    """Name of every file of tensors -> bytes that it must have at least."""
    ends: dict[str, int] = defaultdict(int)
    for place in (index.storage_data or {}).values():
        ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
    return ends


def _problems(index: Any) -> Iterator[str]:
    """What makes a value no index; of types first, for what follows reads them."""
    stored = vars(index).get("state_dict_metadata") if isinstance(index, Metadata) else None
    places = vars(index).get("storage_data") if isinstance(index, Metadata) else None
    if not isinstance(stored, dict) or not isinstance(places, dict | None):
        yield "holds no names of tensors"
        return
    for name, entry in stored.items():
        if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata | BytesStorageMetadata):
            yield f"{brief(name)} is no tensor"
        elif isinstance(entry, TensorStorageMetadata) and not _is_tensor(entry):
            yield f"the shape or data type of {brief(name)} is none"
    for key, place in (places or {}).items():
        if not isinstance(key, MetadataIndex) or not _is_place(place):
            yield f"the place of {brief(getattr(key, 'fqn', key))} is none in a file of this folder"


def _is_tensor(entry: Any) -> bool:
    fields = vars(entry)
    properties, size, chunks = fields.get("properties"), fields.get("size"), fields.get("chunks")
    has_type = isinstance(properties, TensorProperties) and isinstance(vars(properties).get("dtype"), torch.dtype)
    if not has_type or not isinstance(size, torch.Size) or not _is_shape(size) or not isinstance(chunks, list):
        return False
    return all(_is_chunk(chunk, len(size)) for chunk in chunks)


def _is_chunk(chunk: Any, num_axes: int) -> bool:
    if not isinstance(chunk, ChunkStorageMetadata):
        return False
    parts = (vars(chunk).get("offsets"), vars(chunk).get("sizes"))
    return all(isinstance(part, torch.Size) and _is_shape(part) and len(part) == num_axes for part in parts)


def _is_shape(size: torch.Size) -> bool:
    return all(type(length) is int and length >= 0 for length in size) and math.prod(size) < MAX_INTEGER


def _is_place(place: Any) -> bool:
    if not isinstance(place, _StorageInfo):
        return False
    fields = vars(place)
    is_range = all(type(fields.get(name)) is int and 0 <= fields[name] < MAX_INTEGER for name in ("offset", "length"))
    return is_range and is_plain_name(fields.get("relative_path"))
