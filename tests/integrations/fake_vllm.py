"""A package `vllm` with the hook, and as much of its layers as the reward models take.

Signatures are those of vLLM 0.32; the layers are plain torch. What it does itself is tested with
vLLM in `test_vllm_plugin.py`'s slow part.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

_FILES = {
    "__init__.py": """
        from vllm.model_executor.models.registry import ModelRegistry
    """,
    "config.py": """
        class VllmConfig: ...
    """,
    "sequence.py": """
        class IntermediateTensors: ...
    """,
    "model_executor/models/registry.py": """
        class _ModelRegistry:
            def __init__(self, models):
                self.models = models

            def get_supported_archs(self):
                return self.models.keys()

            def register_model(self, model_arch, model_cls):
                self.models[model_arch] = model_cls

        ModelRegistry = _ModelRegistry({"LlamaForCausalLM": "llama"})
    """,
    "model_executor/models/interfaces.py": """
        class SupportsPP: ...
    """,
    "model_executor/models/interfaces_base.py": """
        def default_pooling_type(*, seq_pooling_type="LAST", tok_pooling_type="ALL"):
            def decorate(model):
                model.default_seq_pooling_type = seq_pooling_type
                model.default_tok_pooling_type = tok_pooling_type
                return model
            return decorate
    """,
    "model_executor/models/utils.py": """
        import torch

        def maybe_prefix(prefix, name):
            return name if not prefix else f"{prefix}.{name}"

        class WeightsMapper:
            def __init__(self, *, orig_to_new_prefix=None):
                self.prefixes = orig_to_new_prefix or {}

            def name(self, name):
                for old, new in self.prefixes.items():
                    if name.startswith(old):
                        return new + name[len(old):]
                return name

        class AutoWeightsLoader:
            def __init__(self, module, *, ignore_unexpected_prefixes=None):
                self.module = module
                self.ignored = tuple(ignore_unexpected_prefixes or ())

            def load_weights(self, weights, *, mapper=None):
                parameters = dict(self.module.named_parameters())
                loaded = set()
                for name, tensor in weights:
                    name = mapper.name(name)
                    if name not in parameters and name.startswith(self.ignored):
                        continue
                    with torch.no_grad():
                        parameters[name].copy_(tensor)
                    loaded.add(name)
                return loaded
    """,
    "model_executor/models/qwen2.py": """
        import torch

        class Qwen2Model(torch.nn.Module):
            def __init__(self, *, vllm_config, prefix=""):
                super().__init__()
                config = vllm_config.model_config.hf_config
                self.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
                self.make_empty_intermediate_tensors = None

            def embed_input_ids(self, input_ids):
                return self.embed_tokens(input_ids)

            def forward(self, input_ids, positions, intermediate_tensors, inputs_embeds):
                return self.embed_tokens(input_ids) + positions[:, None]
    """,
    "model_executor/layers/pooler/seqwise/poolers.py": """
        def pooler_for_classify(pooler_config, *, pooling=None, classifier=None, act_fn=None):
            def pool(hidden, last):
                logits = classifier(hidden[last])
                return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)
            return pool
    """,
}


def write_fake_vllm(site: Path) -> Path:
    """The package in `site`; its folder."""
    folder = site / "vllm"
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder
