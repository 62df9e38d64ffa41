"""Train on a cache of reference log-probs, and against it, in one process.

    python reference_worker.py CONFIG CACHE OUTPUT_DIR

Writes OUTPUT_DIR/found.json: metrics of runs with `online` and `precomputed` references, what was refused with which
message, and how many references each objective built.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_lpc.config import ConfigError, parse_args
from megatron_lpc.precompute_reference import precompute_reference
from megatron_lpc.train import train
from megatron_lpc.training import reference as references
from megatron_lpc.training.metrics_file import read_metrics
from megatron_lpc.training.setup import stop_distributed


def main() -> None:
    config, cache, output = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder = Path(config).parent
    common = ["--config", config, "--train-iters", "3", "--eval-interval", "2"]
    precomputed = [*common, "--reference", "precomputed", "--reference-cache", cache]

    def metrics_of(name: str, *flags: str) -> list[dict[str, Any]]:
        train(parse_args([*flags, "--save", str(output / name)]))
        return read_metrics(output / name / "metrics.jsonl")

    def refused(*flags: str, program: Any = train) -> str:
        try:
            program(parse_args(flags))
        except ConfigError as error:
            return str(error)
        finally:
            if dist.is_initialized():
                stop_distributed()
        return "not refused"

    damaged = output / "damaged"
    shutil.copytree(cache, damaged)
    for file in damaged.iterdir():
        file.write_bytes(b"no safetensors")
    found = {
        "online": metrics_of("online", *common),
        "precomputed": metrics_of("precomputed", *precomputed),
        "refused": {
            "data": refused(*precomputed, "--train-data", str(folder / "valid.jsonl")),
            "validation": refused(*precomputed, "--valid-data", f"held_out={folder / 'valid.jsonl'}"),
            "tokenizer": refused(*precomputed, "--tokenizer-model", str(folder / "other_words.model")),
            "length": refused(*precomputed, "--max-length", "60"),
            "weights": refused(*precomputed, "--seed", "6"),
            "damaged": refused(*precomputed, "--reference-cache", str(damaged)),
            "no folder": refused(*precomputed, "--reference-cache", str(output / "nowhere")),
            "simpo": refused(*common, "--loss-type", "simpo", program=precompute_reference),
            "online": refused(*common, program=precompute_reference),
        },
        "built": {},
    }

    count = 0
    online, cached = references.OnlineReference, references.CachedReference

    def counting(reference: Any) -> Any:
        def build(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            return reference(*arguments)

        return build

    references.OnlineReference, references.CachedReference = counting(online), counting(cached)
    for name, flags in {
        "dpo": common,
        "precomputed": precomputed,
        "simpo": [*common, "--loss-type", "simpo"],
        "sft": [*common, "--loss-type", "sft", "--latent-mode", "none", "--codebook-size", "64"],
    }.items():
        count = 0
        train(parse_args(flags))
        found["built"][name] = count
    (output / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
