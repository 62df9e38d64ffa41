"""Signatures of the stand-in beside those of TransformerEngine's own source files, read without importing them."""

from __future__ import annotations

import ast
from pathlib import Path

SIGNATURES = {
    "pytorch/module/linear.py": (("Linear.__init__", "Linear.forward"), "pytorch/module/linear.py"),
    "pytorch/module/layernorm_linear.py": (
        ("LayerNormLinear.__init__", "LayerNormLinear.forward"),
        "pytorch/module/layernorm_linear.py",
    ),
    "pytorch/module/rmsnorm.py": (("RMSNorm.__init__",), "pytorch/module/norm.py"),
    "pytorch/module/base.py": (("get_dummy_wgrad",), "pytorch/module/base.py"),
    "pytorch/attention/dot_product_attention/dot_product_attention.py": (
        ("DotProductAttention.__init__", "DotProductAttention.forward"),
        "pytorch/attention/dot_product_attention.py",
    ),
    "pytorch/attention/rope.py": (
        ("apply_rotary_pos_emb", "apply_fused_qkv_rotary_pos_emb"),
        "pytorch/attention/rope.py",
    ),
    "pytorch/quantization.py": (("fp8_autocast", "fp8_model_init"), "pytorch/quantization.py"),
}
"""Source file of TransformerEngine -> functions, source file of the stand-in."""

_RENAMED = {"torch.Tensor": "Tensor", "InferenceParams": "Any"}
"""Types that the stand-in writes otherwise."""


def signatures(path: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Name of a function -> its arguments with their annotations and defaults, as text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in (node, *inner):
            if isinstance(function, ast.FunctionDef):
                name = function.name if function is node else prefix + function.name
                if name in names:
                    found[name] = _arguments(function.args)
    assert set(found) == set(names), f"{path} lacks {set(names) - set(found)}"
    return found


def _arguments(arguments: ast.arguments) -> list[str]:
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    texts = [_argument(argument, default) for argument, default in zip(arguments.args, defaults, strict=True)]
    return [*texts, "**" if arguments.kwarg else ""]


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    hint = "" if argument.annotation is None else _modern(argument.annotation)
    value = "" if default is None else f" = {ast.literal_eval(default)!r}"
    return f"{argument.arg}: {hint}{value}"


def _modern(hint: ast.expr) -> str:
    """An annotation in the notation of Python 3.10, whatever it is written in."""
    if not isinstance(hint, ast.Subscript):
        text = ast.unparse(hint)
        return _RENAMED.get(text, text)
    of, inner = ast.unparse(hint.value), hint.slice
    parts = [_modern(part) for part in (inner.elts if isinstance(inner, ast.Tuple) else [inner])]
    if of == "Optional":
        return " | ".join([*parts, "None"])
    if of == "Union":
        return " | ".join(parts)
    return f"{of.lower() if of in ('Dict', 'List', 'Tuple') else of}[{', '.join(parts)}]"
