"""llama.cpp as a child process, through llama-cpp-python. Run by an interpreter that has it.

Takes {"gguf", "threads", "context", "sequences"} as its argument, then one request per line; see
`peer_process.py`. All sequences decode together through the C API, one token each per step.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints must not be read as an answer
    import llama_cpp

    settings = json.loads(sys.argv[1])
    llama_cpp.llama_backend_init()
    engine = Greedy(llama_cpp, **settings)
    print(json.dumps({"version": llama_cpp.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        written = engine.write(**json.loads(line))
        print(json.dumps({"tokens": written}), file=answers, flush=True)


class Greedy:
    """Greedy decoding of several sequences at once."""

    def __init__(self, lib: Any, gguf: str, threads: int, context: int, sequences: int) -> None:
        self.lib = lib
        self.model = lib.llama_model_load_from_file(gguf.encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot read {gguf}")
        params = lib.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, params)
        self.num_ids = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(512, 0, 1)

    def write(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        tokens = [self._read_prompt(i, ids) for i, ids in enumerate(prompts)]
        written = [[token] for token in tokens]
        length = [len(ids) for ids in prompts]
        for step in range(num_tokens - 1):
            rows = [(tokens[i], length[i] + step, i, True) for i in range(len(prompts))]
            tokens = self._decode(rows)
            for ids, token in zip(written, tokens):  # noqa: B905 (any Python may run this)
                ids.append(token)
        return written

    def _read_prompt(self, sequence: int, ids: list[int]) -> int:
        """Reads a prompt in blocks of 512 tokens; returns the first new token."""
        rows = [(t, at, sequence, at == len(ids) - 1) for at, t in enumerate(ids)]
        found: list[int] = []
        for start in range(0, len(rows), 512):
            found = self._decode(rows[start : start + 512])
        return found[0]

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decodes rows of (token, position, sequence, wants logits).

        Returns:
            The most likely next token of every row that wants logits.
        """
        import numpy

        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if self.lib.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        found = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = self.lib.llama_get_logits_ith(self.context, i)
                view = numpy.ctypeslib.as_array(logits, shape=(self.num_ids,))
                found.append(int(view.argmax()))
        return found


if __name__ == "__main__":
    main()
