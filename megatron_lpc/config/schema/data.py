"""The data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_lpc.config.data_formats import DataFormat
from megatron_lpc.config.idle_rules import NO_CHOSEN_COLUMN, NO_REJECTED_COLUMN, NOT_STREAMING, PACKED
from megatron_lpc.config.metadata import Role, option


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Preference data and how it becomes tokens."""

    train_data: list[str] = option([], role=Role.RUN)
    """Files (.jsonl, .json, .parquet, .arrow; .gz, .zst), folders or patterns of them, or Hub names
    (owner/name:split, owner/name#configuration:split)."""

    valid_data: dict[str, str] = option({}, role=Role.RUN, evaluation=True)
    """Named validation sets: name -> source, as for `train_data`. As a flag: NAME=FILE …"""

    data_format: DataFormat = option("trl", role=Role.RUN, evaluation=True)
    """Form of the rows, after the program or the data set that made it popular (LLaMA-Factory's `formatting`)."""

    prompt_column: str | None = option(None, role=Role.RUN, evaluation=True)
    """Column with the prompt, where it is not that of `data_format` (OpenRLHF's and NeMo's `prompt_key`)."""

    chosen_column: str | None = option(None, role=Role.RUN, evaluation=True, idle=NO_CHOSEN_COLUMN)
    """Column with the chosen response, where it is not that of `data_format`."""

    rejected_column: str | None = option(None, role=Role.RUN, evaluation=True, idle=NO_REJECTED_COLUMN)
    """Column with the rejected response, where it is not that of `data_format`."""

    system_column: str | None = option(None, role=Role.RUN, evaluation=True)
    """Column with the text of the system's turn, where it is not `system`."""

    tools_column: str | None = option(None, role=Role.RUN, evaluation=True)
    """Column with the tools of a chat, where it is not `tools`."""

    tokenizer_model: str = option("", role=Role.RUN, evaluation=True)
    """Folder or name of a Hugging Face tokenizer, or a sentencepiece .model file."""

    trust_remote_code: bool = option(False, role=Role.RUN, evaluation=True)
    """Run the code that a tokenizer of Hugging Face comes with, as transformers does. Read that code first."""

    chat_template: str | None = option(None, role=Role.RUN, evaluation=True)
    """Jinja file that replaces the tokenizer's chat template."""

    chat_template_date: str | None = option(None, role=Role.RUN, evaluation=True)
    """Today's date (`2026-01-31`) for a chat template that writes it. When unset: the day on which a data set is
    tokenized, kept with its tokens."""

    max_length: int = option(512, range="[2, inf)", role=Role.RUN, evaluation=True)
    """Longest prompt + response in tokens."""

    max_prompt_length: int | None = option(None, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Longest prompt in tokens; longer ones are cut by `truncation_mode`. No limit of its own when unset."""

    truncation_mode: Literal["keep_start", "keep_end"] = option("keep_end", role=Role.RUN, evaluation=True)
    """Which end of a prompt that is too long is kept; responses always keep their start."""

    streaming: bool = option(False, role=Role.RUN)
    """Read the training data during training, without a tokenized copy on disk; needs `train_iters`."""

    shuffle_buffer_size: int = option(10000, range="[1, inf)", role=Role.RUN, idle=NOT_STREAMING)
    """With `streaming`: pairs that each data parallel rank holds and shuffles."""

    share_prompt: bool = option(False, role=Role.RUN, evaluation=True)
    """One sequence per pair (prompt, chosen, rejected): the prompt is computed once and both responses attend to it.
    The results are the same."""

    pack_to: int | None = option(None, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Tokens of a packed sequence, which holds as many pairs as fit and is a micro-batch by itself; not packed when
    unset."""

    pad_to_multiple_of: int | None = option(None, range="[1, inf)", role=Role.RUN, idle=PACKED, evaluation=True)
    """Sequences that are not packed are as long as the longest, rounded up to a multiple of this. When unset: of 128
    on a GPU, whose kernels prefer few lengths, and not rounded on a CPU. The results are the same."""

    bad_rows: Literal["stop", "skip"] = option("stop", role=Role.RUN, evaluation=True)
    """Stop at the first unusable row of a file, or count such rows and write them to a side file."""

    data_cache_path: str = option(".cache/megatron_lpc", role=Role.RUN, evaluation=True)
    """Folder of the tokenized, memory-mapped copies."""

    ignored_columns: list[str] = option([], role=Role.RUN, evaluation=True)
    """Columns that are not read, although they could change the prompt (`system`, `tools`, `images` …)."""

    num_workers: int | None = option(None, range="[1, inf)", role=Role.RUN, evaluation=True)
    """Processes that tokenize data which is not cached yet; as many as this process may use cores when unset."""

    group_column: str | None = option(None, role=Role.RUN, evaluation=True)
    """Column with the group of a pair (its annotator or source), for episodes in training, `latent_mode: embedding` and
    support evaluation; no other mode shows it to the model. With it the defaults of codes are `posterior_context` 7 and
    `latent_inference` exact, and of a Gaussian latent `posterior_context` 7, unless data is streamed."""
