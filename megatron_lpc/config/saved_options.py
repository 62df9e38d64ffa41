"""Options that were saved elsewhere, in a checkpoint or an exported model: of the types and ranges of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from megatron_lpc.config.metadata import Role
from megatron_lpc.config.options import all_options, sections, shown
from megatron_lpc.config.ranges import inside
from megatron_lpc.config.schema import ModelConfig
from megatron_lpc.config.values import IllTyped, from_yaml
from megatron_lpc.outside.messages import Malformed, brief
from megatron_lpc.outside.model_settings import MAX_COUNT


def saved_section(section: str, values: Mapping[str, Any], names: set[str] | None = None) -> dict[str, Any]:
    """The options of a section as the schema has them.

    Args:
        names: those to look at, the others stay as they are; all when unset, and then none may be unknown.

    Raises:
        Malformed: one is unknown, of another type or out of its range; names the option.
    """
    found = dict(values)
    known = {field.name for field in fields(sections()[section])}
    for name, value in values.items():
        if names is not None and name not in names:
            continue
        if name not in known:
            raise Malformed(f"{section}: unknown option {brief(name)}")
        option = all_options()[name]
        try:
            found[name] = from_yaml(option.kind, value)
        except IllTyped as error:
            raise Malformed(f"{section}.{name}: {error}") from error
        numbers = found[name] if isinstance(found[name], list) else [found[name]]
        if option.range is not None and not all(number is None or inside(number, option.range) for number in numbers):
            raise Malformed(f"{section}.{name}: must be in {option.range}, got {shown(brief(value))}")
    return found


def saved_model(values: Mapping[str, Any]) -> ModelConfig:
    """The model of these options.

    Raises:
        Malformed: as `saved_section`, or it is larger than any model.
    """
    model = ModelConfig(**saved_section("model", values))
    check_size(model)
    return model


def check_size(model: ModelConfig) -> None:
    """Raise a Malformed for a model of which the mere names of its tensors fill the memory."""
    places = model.num_layers * (model.num_experts or 1)
    if places > MAX_COUNT:
        raise Malformed(f"model.num_layers: {places:,} layers and experts are above the limit of {MAX_COUNT:,}")


def options_of_weights(section: str) -> set[str]:
    """Names of the options of a section that weights depend on."""
    options = all_options().values()
    return {option.name for option in options if option.section == section and option.role is not Role.RUN}
