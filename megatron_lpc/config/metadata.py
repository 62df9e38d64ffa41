"""What stands beside a field of the schema: its range, its role, when it has no effect, and what it mirrors.

Everything that treats options differently derives its list from here: the ranges, the rules for options without
effect, the check of a resumed run, conversion, evaluation, and `docs/configuration.md`.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from megatron_lpc.config.schema import Config

T = TypeVar("T")

_KEY = "megatron_lpc"
_INTERVAL = re.compile(r"[\[(]-?[\d.]+, (-?[\d.]+|inf)[\])]")


class Role(Enum):
    """What an option belongs to. Weights are read with the same options of their role that they were written with."""

    BACKBONE = "backbone weights"
    """Shape or meaning of the backbone's weights."""
    HEAD = "head weights"
    """Shape or meaning of the LPC head's weights."""
    RUN = "run"
    """This run only: another value fits the same weights."""


@dataclass(frozen=True)
class IdleRule:
    """When options have no effect; a field names the rules that concern it."""

    reason: str
    """Follows "has no effect" in errors and in the documentation; names the flag that would make the option count."""
    applies: Callable[[Config], bool]


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """All that is known of an option besides its type, default and help; the arguments of `option`."""

    role: Role
    range: str | None
    idle: tuple[IdleRule, ...]
    hf_setting: str | None
    hf_rule: str | None
    evaluation: bool


def option(
    default: T,
    *,
    role: Role,
    range: str | None = None,
    idle: IdleRule | tuple[IdleRule, ...] = (),
    hf_setting: str | None = None,
    hf_rule: str | None = None,
    evaluation: bool = False,
) -> T:
    """A field of a section, with its help sentence under it.

        num_layers: int = option(4, range="[1, inf)", role=Role.BACKBONE)
        \"""Transformer layers, over all pipeline stages.\"""

    Args:
        default: its value when neither the file nor a flag sets it.
        role: what it belongs to.
        range: interval of its numbers, such as `(0, inf)`; numeric options must have one.
        idle: rules under which it has no effect. Several may apply; the first of them is the one reported.
        hf_setting: setting of config.json that has the same value; conversion copies it.
        hf_rule: how config.json or the model family expresses it, where that is not one setting of the same value.
        evaluation: `megatron_lpc.evaluate` reads it. For the role `RUN`; options of weights are always read.

    Raises:
        ValueError: `range` is not an interval.
    """
    if range is not None and not _INTERVAL.fullmatch(range):
        raise ValueError(f"'{range}' is not an interval such as [1, inf) or (0, 1]")
    metadata = Metadata(
        role=role,
        range=range,
        idle=(idle,) if isinstance(idle, IdleRule) else idle,
        hf_setting=hf_setting,
        hf_rule=hf_rule,
        evaluation=evaluation or role is not Role.RUN,
    )
    # Typed as its value, as `dataclasses.field` is, so that a field's annotation is checked against its default.
    made: Any
    if isinstance(default, (list, dict)):
        made = dataclasses.field(default_factory=lambda: copy.copy(default), metadata={_KEY: metadata})
    else:
        made = dataclasses.field(default=default, metadata={_KEY: metadata})
    return made


def metadata_of(field: dataclasses.Field[Any]) -> Metadata | None:
    """What `option` put beside a field; None for a field that was not made by it."""
    return field.metadata.get(_KEY)
