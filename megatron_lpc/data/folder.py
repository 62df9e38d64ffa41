"""Which files of a folder are data: shards named as for `datasets.load_dataset`, or what `save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_lpc.outside.files import inside
from megatron_lpc.outside.json_text import read_object
from megatron_lpc.outside.messages import Malformed
from megatron_lpc.outside.typed import check

_SAVED_DATASET = "state.json"
_SAVED_DICT = "dataset_dict.json"


def files_of_folder(folder: Path, split: str | None) -> list[Path]:
    """The files of one split of a folder, in the order of their names; what else lies there may be among them.

    Args:
        split: `train` when None, unless the folder holds one data set that `save_to_disk` wrote.

    Raises:
        ValueError: the folder has no such split, or what `save_to_disk` wrote is damaged.
    """
    if (folder / _SAVED_DICT).is_file():
        names = _read_list(folder / _SAVED_DICT, "splits", str)
        return _saved_files(inside(folder, _chosen(folder, split, names), str(folder / _SAVED_DICT)))
    if (folder / _SAVED_DATASET).is_file():
        if split is not None:
            raise ValueError(f"{folder}: one data set without splits; drop :{split}")
        return _saved_files(folder)
    by_split = _files_by_split(folder)
    if not by_split:
        return []
    return by_split[_chosen(folder, split, list(by_split))]


def _chosen(folder: Path, split: str | None, splits: list[str]) -> str:
    name = split or "train"
    if name not in splits:
        raise ValueError(f"{folder}: no split `{name}`. Name one of {', '.join(splits)}, as {folder}:{splits[0]}.")
    return name


def _saved_files(folder: Path) -> list[Path]:
    path = folder / _SAVED_DATASET
    return [inside(folder, name, str(path)) for name in _read_list(path, "_data_files", {"filename": str}, "filename")]


def _read_list(path: Path, key: str, kind: Any, field: str | None = None) -> list[str]:
    """A list in a JSON file of `save_to_disk`, which is never empty; of its items a field, where one is named."""
    try:
        entries = read_object(path, {key: list[Any]})[key]
        for entry in entries:
            check(entry, kind, f"{path}: {key}")
        if not entries:
            raise Malformed(f"{path}: `{key}` is empty")
        return [entry[field] for entry in entries] if field else entries
    except Malformed as error:
        raise ValueError(
            f"{path}: not as `save_to_disk` of datasets writes it ({error}). Save the data set again."
        ) from error


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Split -> files, by the rules for names of the Hub: `train-*`, `data/test/*` and so on; else all are `train`."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns, sanitize_patterns

    try:
        patterns = sanitize_patterns(get_data_patterns(str(folder)))
        found = DataFilesDict.from_patterns(patterns, base_path=str(folder))
    except EmptyDatasetError:
        return {}
    return {str(split): sorted(map(Path, files)) for split, files in found.items()}
