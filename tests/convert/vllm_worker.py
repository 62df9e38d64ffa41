"""Run by a Python that has vLLM: MODEL PROMPT LATENTS OUTPUT -> sampled tokens and their log-probs, in JSON."""

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    model, prompt, latents, output = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
        gpu_memory_utilization=0.2,  # Of the memory of the host, on a CPU.
        logits_processors=["lpc_serving.vllm_v1:LatentLogits"],
        logprobs_mode="processed_logprobs",
    )

    def parameters(latent):  # type: ignore[no-untyped-def]
        extra = None if latent is None else {"lpc_latent": latent}
        return SamplingParams(max_tokens=8, temperature=1.0, seed=1, logprobs=0, detokenize=False, extra_args=extra)

    prompts = [{"prompt_token_ids": prompt} for _ in latents]
    answers = llm.generate(prompts, [parameters(latent) for latent in latents])
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
    Path(output).write_text(json.dumps({"tokens": tokens, "logprobs": logprobs, "refused": refused}))


if __name__ == "__main__":
    main()
