"""Starts the reward model from a trained draft instead of from nothing.

To judge a step the reward model needs what a draft has learned: which sentence comes next, what its
operands are, what they result in. The draft's layers are copied into a corner of the wider backbone
so that it computes what the draft computes; the rest starts small or at zero.
"""

from __future__ import annotations

import re

import torch

from examples.demo_family.recipes import SHAPES, RewardModel

_HEAD = 32  # both models use heads of this width


def grow(reward: RewardModel, draft_state: dict[str, torch.Tensor]) -> None:
    """Copies a draft's weights into a new, wider and deeper reward model."""
    draft, wide = SHAPES["draft"], SHAPES["prm"]
    if draft.mlp != wide.mlp or draft.kv_heads != wide.kv_heads or draft.heads != draft.kv_heads:
        raise ValueError(f"the shape of the draft, {draft}, must fit into that of the PRM, {wide}")
    # RMSNorm averages over more channels, most of them still near zero.
    shrink = (draft.hidden / wide.hidden) ** 0.5
    # Query heads are grouped by key-value head; the draft's head i leads group i.
    group = wide.heads // wide.kv_heads
    queries = [h * group * _HEAD + i for h in range(draft.heads) for i in range(_HEAD)]
    state = reward.state_dict()
    with torch.no_grad():
        for name, target in state.items():
            source = draft_state.get(name)
            if source is None:
                layer = re.match(r"model\.layers\.(\d+)\.", name)
                new_layer = layer is not None and int(layer[1]) >= draft.layers
                if new_layer and name.endswith(("o_proj.weight", "down_proj.weight")):
                    target.zero_()
            elif target.ndim == 1:
                target.fill_(shrink)
                target[: draft.hidden] = source * shrink
            elif name.endswith("q_proj.weight"):
                target[queries, : draft.hidden] = source
            elif name.endswith("o_proj.weight"):
                target[: draft.hidden] = 0
                target[: draft.hidden, queries] = source
            else:
                rows, columns = source.shape
                target[:rows, :columns] = source
    reward.load_state_dict(state)
