"""Which files of a folder are data: shards named as for `datasets.load_dataset`, or what `save_to_disk` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
        return _saved_files(folder / _chosen(folder, split, _read_list(folder / _SAVED_DICT, "splits")))
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
    return [folder / file["filename"] for file in _read_list(folder / _SAVED_DATASET, "_data_files")]


def _read_list(path: Path, key: str) -> list[Any]:
    """A list in a JSON file of `save_to_disk`, which is never empty."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))[key]
        if not (isinstance(entries, list) and entries):
            raise ValueError(f"`{key}` is {entries!r}")
        return entries
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not as `save_to_disk` of datasets writes it ({type(error).__name__}: {error}). Save the data "
            "set again."
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
