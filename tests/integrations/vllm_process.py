"""vLLM as a child process, run by an interpreter that has it; see `test_vllm.py`.

Takes {"folder", "architecture", "prompts"} as its argument, prompts as lists of token ids that go
one after the other. Prints [{"probs", "cached"}]: tokens of the prompt that the prefix cache had.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    given = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not be read as an answer
    import vllm

    chosen = {} if given["architecture"] is None else {"architectures": [given["architecture"]]}
    engine = vllm.LLM(
        model=given["folder"],
        runner="pooling",
        hf_overrides=chosen,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=4,
        enable_prefix_caching=True,
        enforce_eager=True,
    )
    results = []
    for ids in given["prompts"]:
        [output] = engine.classify([{"prompt_token_ids": ids}], use_tqdm=False)
        results.append({"probs": output.outputs.probs, "cached": output.num_cached_tokens})
    json.dump(results, answers)
    answers.flush()


if __name__ == "__main__":
    main()
