"""Run by a Python with vLLM: MODEL REQUESTS OUTPUT TP_SIZE -> tokens, their log-probs and their way there, in JSON."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    model, requests, output = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    llm = LLM(
        model=model,
        tensor_parallel_size=int(sys.argv[4]),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=128,
        enforce_eager=True,
        gpu_memory_utilization=0.2,  # Of the memory of the host, on a CPU.
        logits_processors=["lpc_serving.vllm_v1:LatentLogits"],
        logprobs_mode="processed_logprobs",
        # Long prompts are read in parts, and there is no room for all requests at their full length.
        max_num_batched_tokens=32,
        max_num_seqs=8,
        block_size=32,
        num_gpu_blocks_override=12,
        disable_log_stats=False,
    )

    def parameters(latent):  # type: ignore[no-untyped-def]
        extra = None if latent is None else {"lpc_latent": latent}
        # Without a seed of their own, which vLLM 0.32 on a CPU cannot rewind after a part of a prompt.
        return SamplingParams(
            max_tokens=40, temperature=1.0, ignore_eos=True, logprobs=0, detokenize=False, extra_args=extra
        )

    prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
    answers = llm.generate(prompts, [parameters(request["latent"]) for request in requests])
    refused = ""
    try:
        llm.generate(prompts[:1], [parameters([1.0])])
    except Exception as error:
        refused = str(error)
    tokens = [list(answer.outputs[0].token_ids) for answer in answers]
    logprobs = [
        [
            step[token].logprob
            for step, token in zip(answer.outputs[0].logprobs, answer.outputs[0].token_ids, strict=True)
        ]
        for answer in answers
    ]
    found = {
        "tokens": tokens,
        "logprobs": logprobs,
        "refused": refused,
        "preemptions": [answer.metrics.num_preemptions for answer in answers],
        "cached": [answer.num_cached_tokens for answer in answers],
    }
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
