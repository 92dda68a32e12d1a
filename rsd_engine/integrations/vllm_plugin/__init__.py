"""Process reward models for vLLM, by way of its entry points `vllm.general_plugins`.

vLLM calls `register.register` in every process that it starts, so that module imports neither torch
nor the engine. It names `models`, which vLLM imports where such a model is asked for.
"""
