"""A row of any published form, or with any names of columns, becomes one with `prompt`, `chosen` and `rejected`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_lpc.config.schema import DataConfig
from megatron_lpc.data.data_formats import FORMS, as_it_is
from megatron_lpc.data.row import Row
from megatron_lpc.outside.messages import reason

ASSISTANT_TURN = "\n\nAssistant:"
"""Opens a response in an HH-RLHF transcript."""

_ANY_FORM = (
    "Name the columns with --prompt-column, --chosen-column and --rejected-column, or a published form with "
    "--data-format"
)


def standard_row(row: Row, config: DataConfig) -> Row:
    """`row` with the columns `prompt`, `chosen`, `rejected`, `system` and `tools`, those that it has, and all columns
    that its form does not use.

    Raises:
        BadRow: a column that an option names, or that its form needs, is missing, or the row is no pair.
    """
    form = FORMS[config.data_format]
    values = _renamed(row, config)
    for column in form.columns:
        if values.get(column) is None:
            problem = f"`{column}` is null" if column in values else f"column `{column}` is missing"
            raise row.location.bad_row(f"{problem} ({_found(row)})", _advice(row.values))
    if form.convert is as_it_is and values.get("prompt") is None and not _is_conversation(values["chosen"]):
        _check_other_form(row)
    read = {*form.columns, *form.optional}
    try:
        converted = form.convert({name: value for name, value in values.items() if name in read and value is not None})
    except ValueError as error:
        raise row.location.bad_row(str(error), "Fix it, remove it, or set --bad-rows skip") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise row.location.bad_row(
            f"the row does not have the form of --data-format {config.data_format} ({type(error).__name__}: "
            f"{reason(error)})",
            _advice(row.values),
        ) from error
    return replace(row, values={name: value for name, value in values.items() if name not in read} | converted)


def _renamed(row: Row, config: DataConfig) -> dict[str, Any]:
    """Values under the names of the form, for what the options name otherwise."""
    options = {
        "prompt": config.prompt_column,
        "chosen": config.chosen_column,
        "rejected": config.rejected_column,
        "system": config.system_column,
        "tools": config.tools_column,
    }
    named = {role: column for role, column in options.items() if column is not None}
    for role, column in named.items():
        if column not in row.values:
            raise row.location.bad_row(
                f"column `{column}`, of --{role}-column, is missing ({_found(row)})", "Name one that every row has"
            )
    roles = FORMS[config.data_format].roles
    values = {name: value for name, value in row.values.items() if name not in named.values()}
    return values | {roles.get(role, role): row.values[column] for role, column in named.items()}


def _is_conversation(response: object) -> bool:
    """Whether a response may hold its prompt."""
    return isinstance(response, list) or (isinstance(response, str) and ASSISTANT_TURN in response)


def _check_other_form(row: Row) -> None:
    """Refuse a row without a prompt that has the columns of another form."""
    form = _fitting_form(row.values)
    if form is not None:
        raise row.location.bad_row(f"column `prompt` is missing ({_found(row)})", _advice(row.values))


def _advice(columns: Mapping[str, Any]) -> str:
    form = _fitting_form(columns)
    return _ANY_FORM if form is None else f"Set --data-format {form}, of which these are the columns"


def _fitting_form(columns: Mapping[str, Any]) -> str | None:
    """The form of which most columns are there, of those that are there whole."""
    sizes = {
        name: len(sign)
        for name, form in FORMS.items()
        for sign in ((form.columns,) if form.signs is None else form.signs)
        if set(sign) <= columns.keys()
    }
    return max(sizes, key=lambda name: sizes[name], default=None)


def _found(row: Row) -> str:
    """The columns of a row, for messages; names may hold what cannot be encoded."""
    return "columns: " + (", ".join(row.values) or "none")
