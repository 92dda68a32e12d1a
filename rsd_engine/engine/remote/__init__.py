"""Models behind servers: vLLM, SGLang or `rsd serve`."""
