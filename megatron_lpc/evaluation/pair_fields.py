"""Named quantities of each pair that travel between ranks together, as one fp64 matrix.

A collective per quantity would multiply the messages of a step. So the quantities lie side by side in the columns of a
matrix, and this is the only place that knows where: `pack` and `unpack` go by the same names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairFields:
    """Names and shapes of what is known of one pair, in the order of their columns.

    fp64 holds every fp32 value and every integer up to 2^53 exactly, so packing changes no value.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """Name -> shape per pair; () for a number."""

    @property
    def widths(self) -> list[int]:
        """Columns of each field; 0 for a field of an empty shape such as (0,)."""
        return [math.prod(shape) for shape in self.shapes.values()]

    def pack(self, values: Mapping[str, Tensor]) -> Tensor:
        """[P, F] fp64, one row per pair, F the sum of `widths`.

        Args:
            values: by name, [P, *shape] of any dtype.

        Raises:
            ValueError: the names are not those of the fields, or a tensor has another shape.
        """
        if values.keys() != self.shapes.keys():
            raise ValueError(f"the fields of a pair are {list(self.shapes)}; given are {list(values)}")
        pairs = len(next(iter(values.values())))
        columns = []
        for name, shape in self.shapes.items():
            expected = (pairs, *shape)
            if values[name].shape != expected:
                raise ValueError(f"{name} must be {list(expected)}; it is {list(values[name].shape)}")
            columns.append(values[name].double().reshape(pairs, math.prod(shape)))
        return torch.cat(columns, dim=1)

    def unpack(self, matrix: Tensor) -> dict[str, Tensor]:
        """The fields [P, *shape] fp64 of a matrix [P, F] that `pack` made, by name.

        Raises:
            ValueError: the matrix has another number of columns.
        """
        if matrix.ndim != 2 or matrix.size(1) != sum(self.widths):
            raise ValueError(f"pairs of {sum(self.widths)} columns cannot be unpacked from {list(matrix.shape)}")
        parts = matrix.split(self.widths, dim=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(len(matrix), *shape) for (name, shape), part in named}
