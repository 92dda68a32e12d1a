"""The op surface the engine calls: one name an op, the twin chosen by where the tensors are.

Every op has a plain-PyTorch twin in `rsd_kernels.reference`, which runs on any device.
"""

from __future__ import annotations

from rsd_kernels.reference.append import append
from rsd_kernels.reference.bridge import bridge, wait_for_host, write_prm_step
from rsd_kernels.reference.pages import truncate_kv
from rsd_kernels.reference.plan import advance, plan
from rsd_kernels.reference.sample import sample
from rsd_kernels.reference.settle import decide, settle, settle_slot

__all__ = [
    "advance",
    "append",
    "bridge",
    "decide",
    "plan",
    "sample",
    "settle",
    "settle_slot",
    "truncate_kv",
    "wait_for_host",
    "write_prm_step",
]
