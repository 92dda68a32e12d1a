"""Reward models as vLLM's pooling models: the reward is read at the last token of a prompt.

vLLM pools the step-token models that it knows at every tag of a prompt (STEP), for which it turns
its prefix cache off and reads the whole conversation again with each step. Pooled at the last token
(LAST, task `classify`) a prompt that ends with the tag of the newest step reads only that step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.seqwise.poolers import pooler_for_classify
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.interfaces_base import default_pooling_type
from vllm.model_executor.models.qwen2 import Qwen2Model
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors


@default_pooling_type(seq_pooling_type="LAST", tok_pooling_type="ALL")
class _RewardModel(nn.Module, SupportsPP):
    """A Qwen2 decoder with a head on its final norm.

    Its one task is `classify`: what the head gives at the last token of a prompt, activated.
    `token_classify`, at every token, would leave the prefix cache unread.
    """

    is_pooling_model = True
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    weights_mapper = WeightsMapper()  # tensors of the checkpoint -> those of this module
    num_labels: int

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        self.config = model_config.hf_config
        self.config.num_labels = self.num_labels
        self.model = Qwen2Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        # The pooler runs on rank 0 alone, so the head is whole there: a layer that is split over
        # ranks would wait for the others for ever.
        self.score = self.make_head(self.config.hidden_size, model_config.head_dtype)
        self.pooler = pooler_for_classify(model_config.pooler_config, classifier=self.score)

    @staticmethod
    def make_head(hidden: int, dtype: torch.dtype) -> nn.Module:
        """From [rows, hidden] of `dtype` to [rows, num_labels] before the activation."""
        raise NotImplementedError

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor | IntermediateTensors:
        """Hidden states after the final norm; the pooler applies the head to the rows it takes."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loader: Any = AutoWeightsLoader(self, ignore_unexpected_prefixes=["lm_head."])
        loaded: set[str] = loader.load_weights(weights, mapper=self.weights_mapper)
        return loaded


class ValueHeadRewardModel(_RewardModel):
    """Skywork-o1-Open-PRM, and any Qwen2 with the value head of TRL: one label, a sigmoid."""

    num_labels = 1
    weights_mapper = WeightsMapper(orig_to_new_prefix={"v_head.summary.": "score."})

    @staticmethod
    def make_head(hidden: int, dtype: torch.dtype) -> nn.Module:
        return nn.Linear(hidden, 1, dtype=dtype)


class TwoClassRewardModel(_RewardModel):
    """Qwen2.5-Math-PRM and its kin: two labels, bad and good, a softmax."""

    num_labels = 2

    @staticmethod
    def make_head(hidden: int, dtype: torch.dtype) -> nn.Module:
        inner, classes = nn.Linear(hidden, hidden, dtype=dtype), nn.Linear(hidden, 2, dtype=dtype)
        return nn.Sequential(inner, nn.ReLU(), classes)
