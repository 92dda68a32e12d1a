"""What the benchmarks of kernels launch: each runs its cases on CUDA, once and untimed."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor

from bench.kernels import attention_cases, loop_op_cases, model_decode, model_ops, weight_formats
from bench.kernels.loop_op_state import LoopOpSizes, empty_slots
from bench.kernels.loop_ops import cases as loop_op_cases_of
from bench.kernels.setting import REAL, Setting
from bench.step import verify
from rsd_kernels.reward.heads import RewardHead

_DEVICE = torch.device("cuda")


def decode() -> None:
    """`bench.kernels`: whole models that decode a token, plain and early."""
    setting = Setting.real(REAL, runs=1)
    for shape in setting.shapes.values():
        model_decode.run_once(setting, shape, 1)


def ops() -> None:
    """`bench.kernels`: every op of a decode step."""
    setting = Setting.real(REAL, runs=1)
    with mock.patch.object(attention_cases, "_dense", lambda inputs: None):
        for shape in setting.shapes.values():
            for case in model_ops.cases(setting, shape):
                case.contenders["ours"].call(0)


def control() -> None:
    """`bench.control`: reward, decision and rollback."""
    with (
        mock.patch.object(loop_op_cases, "_clear_rewards", _any_rows),
        mock.patch.object(loop_op_cases, "_eager_arguments", lambda start, device: {}),
        mock.patch.object(loop_op_cases, "mid_step", empty_slots),
    ):
        for make in loop_op_cases_of(LoopOpSizes.real(copies=1), _DEVICE):
            make().ours(0)


def _any_rows(num_slots: int, width: int, head: RewardHead, device: torch.device) -> Tensor:
    return torch.empty(num_slots, width, dtype=head.norm_weight.dtype, device=device)


def _on_host(table: Tensor) -> Tensor:
    return torch.empty(table.shape, dtype=table.dtype)


def verify_guesses() -> None:
    """`bench.verify`: passes of the target that verify guesses."""
    setting = Setting.real({verify.MODEL: REAL[verify.MODEL]}, runs=1)
    with mock.patch.object(
        Tensor, "cpu", lambda table: torch.empty(table.shape, dtype=table.dtype)
    ):
        verify.run_once(setting, setting.shapes[verify.MODEL])


def formats() -> None:
    """`bench.weight_formats`: whole models whose layers are held in few bits."""
    setting = weight_formats.real(weight_formats.MODELS, runs=1)
    for shape in setting.shapes.values():
        weight_formats.run_once(setting, shape)


CASES = {
    "decode": decode, "ops": ops, "control": control, "verify": verify_guesses,
    "weight_formats": formats,
}  # fmt: skip
"""The benchmarks of kernels in `bench.gpu`, by name."""
