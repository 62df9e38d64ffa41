"""Token ids that are too long are cut.

As close to TRL as the one condition of the method allows: both responses follow the same prompt, since h_x is one
token.
1. The prompt is cut to `max_prompt_length`, at the end that `truncation_mode` does not keep.
2. Where the prompt and the longer response still exceed `max_length`
   - `keep_start`: the first `max_length` tokens of prompt + response stay, so responses lose their end; a prompt that
     fills `max_length` leaves no response and makes the row unusable. As TRL.
   - `keep_end`: the prompt makes room for the longer response; what then still exceeds is cut from the end of the
     responses. TRL cuts each prompt + response by itself, which would give the responses different prompts.

What `keep_end` takes from a prompt stands behind its head: the opening of a chat (BOS, the system's turn, the tools) or
the BOS of a text. An opening that would leave nothing else of the prompt is cut as well, and so is BOS.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from megatron_lpc.config.schema import DataConfig

Tokens = Sequence[int]


def truncate(
    prompt: Tokens, chosen: Tokens, rejected: Tokens, config: DataConfig, bos_length: int, opening: Callable[[int], int]
) -> tuple[Tokens, Tokens, Tokens]:
    """Prompt, chosen and rejected within the limits; responses are empty where nothing is left of them.

    Args:
        bos_length: tokens of BOS at the start of the prompt.
        opening: gives the tokens of a chat's opening at the start of the prompt, 0 where it does not fit into so many
            tokens beside another one; asked only where it matters.
    """
    longest_prompt = config.max_prompt_length or sys.maxsize
    if config.truncation_mode == "keep_start":
        prompt = prompt[:longest_prompt]
    else:
        room_beside = config.max_length - max(len(chosen), len(rejected))
        # Responses leave the prompt BOS and one token, and the prompt them one.
        least = min(bos_length + 1, config.max_length - 1)
        room = min(longest_prompt, max(room_beside, least))
        if len(prompt) > room:
            head = max(length for length in (opening(room), bos_length, 0) if length < room)
            prompt = [*prompt[:head], *prompt[len(prompt) - room + head :]]
    room = max(config.max_length - len(prompt), 0)
    return prompt, chosen[:room], rejected[:room]
