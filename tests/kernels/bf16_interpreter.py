"""Makes Triton's interpreter compute with bfloat16 as a GPU does.

Unpatched, it keeps the bits in uint16, and adds, multiplies and truncates those.

A plugin of pytest (`-p bf16_interpreter`), for a process with TRITON_INTERPRET=1. Values go up to fp32 for every
operation, and back to the nearest bf16. Also lets the interpreter of Triton 3.6 count loops with NumPy from 2.4 on,
where an array of one is no number.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_Builder = interpreter.InterpreterBuilder
_patch_tensor = interpreter._patch_lang_tensor
_cast, _dot, _binary, _fp_to_fp = _Builder.cast_impl, _Builder.create_dot, _Builder.binary_op, _Builder.create_fp_to_fp


def _widened(handle):
    if handle.get_element_ty() != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _rounded(values):
    values = np.ascontiguousarray(values, dtype=np.float32)
    return torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


def _cast_impl(self, source, destination):
    before, after = source.dtype.scalar, destination.scalar
    if after == tl.bfloat16 and before != tl.bfloat16:
        return interpreter.TensorHandle(_rounded(source.data.astype(np.float32)), after)
    if before == tl.bfloat16 and after != tl.bfloat16:
        return interpreter.TensorHandle(_widened(source).astype(interpreter._get_np_dtype(destination)), after)
    return _cast(self, source, destination)


def _create_fp_to_fp(self, source, destination, rounding):
    if tl.bfloat16 in (source.dtype.scalar, destination.scalar):
        return _cast_impl(self, source, destination)
    return _fp_to_fp(self, source, destination, rounding)


def _create_dot(self, left, right, total, precision, imprecise):
    if tl.bfloat16 not in (left.get_element_ty(), right.get_element_ty()):
        return _dot(self, left, right, total, precision, imprecise)
    product = np.matmul(_widened(left), _widened(right), dtype=np.float32)
    return interpreter.TensorHandle(product.astype(total.data.dtype) + total.data, total.dtype.scalar)


def _binary_op(self, left, right, operation):
    if left.get_element_ty() != tl.bfloat16 or right.get_element_ty() != tl.bfloat16:
        return _binary(self, left, right, operation)
    result = operation(_widened(left), _widened(right))
    return (
        interpreter.TensorHandle(result, tl.int1)
        if result.dtype == bool
        else interpreter.TensorHandle(_rounded(result), tl.bfloat16)
    )


def _patch_lang_tensor(tensor, scope):
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


_Builder.cast_impl, _Builder.create_dot, _Builder.binary_op = _cast_impl, _create_dot, _binary_op
_Builder.create_fp_to_fp = _create_fp_to_fp
interpreter._patch_lang_tensor = _patch_lang_tensor
