"""Hugging Face models, checkpoints, and what programs keep on disk."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from inputs import ODD_YAML, PICKLES, changed_bytes, changed_json, dumps, json_or_bytes
from outcome import Wrong
from safetensors.torch import save
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata

from megatron_lpc.command_line import UserError
from megatron_lpc.config import Config, ModelConfig, all_options
from megatron_lpc.config.values import from_yaml
from megatron_lpc.convert.description import describe_hf, describe_megatron
from megatron_lpc.convert.hf_folder import HFFolder
from megatron_lpc.convert.hub.latent_table import TABLE_FILE, LatentTable
from megatron_lpc.convert.hub.saved_latent import read_latent
from megatron_lpc.convert.import_hf import check_tensors
from megatron_lpc.convert.megatron_folder import MegatronFolder
from megatron_lpc.data.dataset import PairDataset
from megatron_lpc.data.template_date import DATE_FILE
from megatron_lpc.study.planned_run import PlannedRun
from megatron_lpc.study.rows import Row
from megatron_lpc.study.study_file import read_study
from megatron_lpc.training.checkpoint_folder import read_run_description, resolve_checkpoint
from megatron_lpc.training.checkpoint_integrity import damaged_files, read_manifest
from megatron_lpc.training.checkpoint_search import _candidates
from megatron_lpc.training.checkpoint_soundness import defects
from megatron_lpc.training.metrics_file import MetricsFile, read_metrics
from megatron_lpc.training.reference_cache import cache_file, load_reference_cache
from megatron_lpc.training.state import RunState


@st.composite
def hf_models(draw: st.DrawFn, base: dict[str, bytes]) -> dict[str, bytes]:
    """A Hugging Face model with its config.json, its index, or a file of weights changed."""
    name = draw(st.sampled_from(("config.json", "config.json", "config.json", "index", "index", "weights", "pickle")))
    if name == "config.json":
        return base | {name: draw(json_or_bytes(base[name]))}
    if name == "index":
        index = next(each for each in base if each.endswith(".index.json"))
        content = base[index]
        if draw(st.booleans()):
            value = json.loads(content)
            tensor = draw(st.sampled_from(sorted(value["weight_map"])))
            place = draw(
                st.sampled_from(("../outside/secret.safetensors", "/etc/passwd", "a/../../outside/x", "", "."))
            )
            value["weight_map"][tensor] = place
            return base | {index: json.dumps(value).encode()}
        return base | {index: draw(json_or_bytes(content))}
    if name == "weights":
        file = draw(st.sampled_from([each for each in base if each.endswith(".safetensors")]))
        content = base[file]
        if draw(st.booleans()):
            (length,) = struct.unpack("<Q", content[:8])
            header = draw(json_or_bytes(content[8 : 8 + length]))
            return base | {file: struct.pack("<Q", len(header)) + header + content[8 + length :]}
        return base | {file: draw(changed_bytes(content))}
    return {"config.json": base["config.json"], "pytorch_model.bin": draw(pickles(base["pytorch_model.bin"]))}


def pickles(content: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(st.sampled_from(PICKLES), changed_bytes(content), changed_bytes(content))


def read_hf_model(folder: Path) -> None:
    """What is accepted is a model of the schema with all its tensors, and nothing but numbers."""
    source = HFFolder(folder)
    described = describe_hf(source.config)
    check_tensors(source, described)
    _check_model(described.model)
    for name, info in source.tensors.items():
        if tuple(source.read(name).shape) != info.shape:
            raise Wrong(f"{name} has another shape")
    wanted = json.loads((folder / "config.json").read_bytes())["num_hidden_layers"]
    if described.model.num_layers != wanted:
        raise Wrong("another number of layers")


def _check_model(model: ModelConfig) -> None:
    for name, value in vars(model).items():
        from_yaml(all_options()[name].kind, value)


def run_description(model: dict[str, Any]) -> bytes:
    """`description.json` of a run."""
    layout = {"world_size": 1, "device": "cpu"}
    options = asdict(Config()) | {"model": model}
    saved = {"run": asdict(RunState(iteration=3)), "optimizer_updates": 3, "scheduler_steps": 3}
    return json.dumps(saved | {"layout": layout, "options": options}).encode()


@st.composite
def checkpoints(draw: st.DrawFn, base: dict[str, bytes]) -> tuple[dict[str, bytes], bool]:
    """A checkpoint with one file changed, in a folder with a pointer; whether a run resumes from it."""
    name = draw(
        st.sampled_from((*["description.json"] * 3, *[".metadata"] * 3, "integrity.json", "metadata.json", "x"))
    )
    name = draw(st.sampled_from(sorted(base))) if name == "x" else name
    pointer = b"3\n"
    if draw(st.integers(0, 7)) == 0:
        odd = (
            b"iter_abc",
            b"../outside",
            b"release",
            b"/etc",
            b"9" * 5000,
            b"\xff\xfe",
            b"",
            b"-1",
            b"a" * 10**6,
            b"4",
        )
        pointer = draw(st.sampled_from(odd))
    if name != "integrity.json" and draw(st.booleans()):  # Which finds every change of the other files.
        base = {each: what for each, what in base.items() if each != "integrity.json"}
    if name not in base:
        name = "description.json"
    content = base[name]
    if pointer != b"3\n":
        pass
    elif name == ".metadata":
        content = draw(st.one_of(pickles(content), _claims(content)))
    elif name.endswith(".json"):
        content = draw(json_or_bytes(content))
    else:
        content = draw(changed_bytes(content))
    inner = {f"iter_0000003/{each}": what for each, what in (base | {name: content}).items()}
    return inner | {"latest_checkpointed_iteration.txt": pointer}, draw(st.booleans())


@st.composite
def _claims(draw: st.DrawFn, content: bytes) -> bytes:
    """An index in which a tensor, or its place, is another."""
    index = pickle.loads(content)
    name = draw(st.sampled_from(sorted(index.state_dict_metadata)))
    entry = index.state_dict_metadata[name]
    size = draw(st.sampled_from(((10**6, 10**6), (2**62,), (2**40, 2**40), (0,), (-1, 3))))
    how = draw(st.integers(0, 3))
    if how == 0 and isinstance(entry, TensorStorageMetadata):
        entry.size = torch.Size(size)
        for chunk in entry.chunks:
            chunk.sizes, chunk.offsets = torch.Size(size), torch.Size([0] * len(size))
    elif how == 1:
        key = next((each for each in index.storage_data if each.fqn == name), None)
        if key is not None:
            odd = ("../outside/secret", "/etc/passwd", 3, None, "", "__0_0.distcp/../x", "a\0b")
            index.storage_data[key].relative_path = draw(st.sampled_from(odd))
    elif how == 2:
        key = next(iter(index.storage_data))
        index.storage_data[key].offset = draw(st.sampled_from((-5, 2**70, 10**9, "x")))
        index.storage_data[key].length = draw(st.sampled_from((-5, 2**62, 10**12, 0, None)))
    else:
        odd_values = (None, 3, {}, [name], Metadata({}), MetadataIndex("x"), TensorProperties())
        index.state_dict_metadata[name] = draw(st.sampled_from(odd_values))
    return pickle.dumps(index)


def read_checkpoint(folder: Path, resumes: bool) -> None:
    """A checkpoint is sound and its tensors are what its index says, or it is refused."""
    _candidates(folder)
    checkpoint = resolve_checkpoint(folder)
    if checkpoint.parent != folder:
        raise Wrong("the pointer leads elsewhere")
    found = list(defects(checkpoint, resumes))
    manifest = read_manifest(checkpoint)
    found += (
        []
        if manifest is None
        else [f"{checkpoint}: {each}" for each in damaged_files(checkpoint, manifest, manifest.files)]
    )
    if resumes:
        description = read_run_description(checkpoint)
        RunState(**description["run"])
    described = describe_megatron(checkpoint)
    _check_model(described.model)
    opened = MegatronFolder(checkpoint)
    for name, info in opened.tensors.items():
        opened.read(name, (0,) * len(info.shape), info.shape)
    if found:
        raise UserError(found[0])


def keepsakes() -> dict[str, bytes]:
    """What programs keep on disk: name -> its content as it should be."""
    latent = {
        "kind": "megatron_lpc mixture of codes",
        "num_codes": 3,
        "pairs": 4,
        "posterior": "support",
        "codes": "abc",
    }
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    table = {"kind": "megatron_lpc table of codes", "codes": "abc", "code_names": ["a", "b", "c"]}
    prior = {"prior.0.weight": torch.zeros(4, 2), "prior.0.bias": torch.zeros(4)}
    prior |= {"prior.2.weight": torch.zeros(3, 4), "prior.2.bias": torch.zeros(3)}
    logps = {"reference_logps": torch.zeros(5, 2)}
    study = "config: run.yaml\nseeds: [1, 2]\ndata:\n  two: ['make.py {data}']\nrows:\n  plain: {latent_mode: none}\n"
    study += "grid:\n  loss_type: [dpo, ipo]\nmetrics: [support(new)]\nsupport: {data: x.jsonl, pairs: [0, 8]}\n"
    metrics = '{"iteration": 1, "loss": 0.5}\n{"iteration": 2, "loss": null, "evaluation": "v"}\n'
    return {
        "latent.safetensors": save({"weights": weights}, metadata={"latent": json.dumps(latent)}),
        TABLE_FILE: save({"table": torch.zeros(3, 7), **prior}, metadata={"lpc": json.dumps(table)}),
        cache_file("cache", "d" * 30).name: save(logps, metadata={"data": "d" * 30, "weights": "w"}),
        "metrics.jsonl": metrics.encode(),
        "study.yaml": study.encode(),
        "options.json": b'{"training": {"options": {"lr": 1}, "changed": ["lr"]}, "evaluation": {"a": 1}}',
        "report.json": b'{"data": {"new": {"pairs": 3, "metrics": {"prior": {"loss": 1.0}}}}}',
    }


@st.composite
def kept_files(draw: st.DrawFn, cache: dict[str, bytes]) -> tuple[dict[str, bytes], str]:
    """One of them changed, and its name."""
    base = keepsakes()
    name = draw(st.sampled_from((*base, *cache)))
    content = (base | cache)[name]
    if name.endswith(".safetensors") and draw(st.booleans()):
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        (key,) = header["__metadata__"].keys() & {"latent", "lpc"} or {"data"}
        about = header["__metadata__"][key]
        changed = dumps(draw(changed_json(json.loads(about)))) if about.startswith("{") else "other"
        header["__metadata__"][key] = changed
        packed = json.dumps(header).encode()
        content = struct.pack("<Q", len(packed)) + packed + content[8 + length :]
    elif name.endswith(".json"):
        content = draw(json_or_bytes(content))
    elif name == "metrics.jsonl" and draw(st.booleans()):
        line = draw(changed_json({"iteration": 3, "loss": 1.0, "evaluation": "v"}))
        content += dumps(line).encode(errors="surrogatepass") + b"\n"
    elif name == "study.yaml" and draw(st.booleans()):
        lines = content.decode().splitlines()
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = lines[at].partition(":")[0] + ": " + draw(st.sampled_from(ODD_YAML))
        content = "\n".join(lines).encode(errors="surrogatepass")
    else:
        content = draw(changed_bytes(content))
    if name in cache:
        return cache | {name: content}, "cache"
    return base | {name: content}, name


def read_kept(folder: Path, name: str) -> None:
    """What is accepted is of the types that are expected."""
    file = folder / name
    if name == "cache":
        dataset = PairDataset(folder)
        for example_index in range(len(dataset)):
            pair = dataset[example_index]
            if len(pair.prompt) != dataset.lengths[example_index][0]:
                raise Wrong("another length")
        dataset.prompt_checksums()
        (folder / DATE_FILE).exists()
    elif name == "latent.safetensors":
        latent = read_latent(file)
        if (
            abs(float(latent.weights.sum()) - 1) > 0.01
            or type(latent.pairs) is not int
            or not isinstance(latent.codes, str)
        ):
            raise Wrong("no weights of codes")
    elif name == TABLE_FILE:
        table = LatentTable(folder)
        table.latent_of({"lpc_latent": 0})
        for request in ("../latent", "a", [1, 0, 0], True, {"a": 1}, "\0", "x" * 10_000):
            try:
                table.latent_of({"lpc_latent": request})
            except ValueError as error:
                if len(str(error)) > 1000:
                    raise Wrong("a long answer to a request") from None
    elif name == "metrics.jsonl":
        for record in read_metrics(file):
            if type(record["iteration"]) is not int:
                raise Wrong("a step is no number")
        MetricsFile(file, 1).__exit__(None, None, None)
    elif name == "study.yaml":
        study = read_study(file)
        if not all(type(seed) is int for seed in study.seeds):
            raise Wrong("a seed is no number")
    elif name in ("options.json", "report.json"):
        run = PlannedRun(
            row=Row(name="a"),
            data="d",
            seed=1,
            folder=folder,
            command=(),
            training={"options": {"lr": 1}, "changed": ["lr"]},
            evaluation={"a": 1},
            reports={None: "report.json"},
        )
        run.is_finished()
        if not isinstance(run.report(None), dict):
            raise Wrong("no report")
    else:
        loaded = load_reference_cache(folder, "train", "d" * 30, "w")
        if loaded.shape[1] != 2:
            raise Wrong("no log-probs")
