"""vLLM's CPU build as a child process. Run by an interpreter that has it.

Takes {"folder", "threads", "context", "sequences"} as its argument, then one request per line; see
`peer_process.py`. It is compiled and in fp32. Prefix caching is off, since every run has the same
prompts.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not be read as an answer
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{settings['threads'] - 1}"
    import vllm

    engine = vllm.LLM(
        model=settings["folder"],
        dtype="float32",
        max_model_len=settings["context"],
        max_num_seqs=settings["sequences"],
        enable_prefix_caching=False,
    )
    print(json.dumps({"version": vllm.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        params = vllm.SamplingParams(
            temperature=0.0, max_tokens=request["num_tokens"], ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": ids} for ids in request["prompts"]]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        written = [list(output.outputs[0].token_ids) for output in outputs]
        print(json.dumps({"tokens": written}), file=answers, flush=True)


if __name__ == "__main__":
    main()
