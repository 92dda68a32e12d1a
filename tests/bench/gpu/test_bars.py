"""Bars of the whole program, judged from results of parts that are made up."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu import bars


def op(name: str, us: float, times: float, limit: float = 8.0) -> dict[str, Any]:
    return {
        "op": name, "us": {"ours, graph": us, "torch ops, host": times * us},
        "times_faster_than_eager": times, "limit_us": limit,
    }  # fmt: skip


def results() -> dict[str, Any]:
    """Every part, most bars met."""
    plain = {"Qwen2.5-1.5B": 0.75, "Qwen2.5-7B": 0.8, "Qwen2.5-0.5B": 0.1}
    whole: dict[str, Any] = {
        m: {"ceiling_us": 100 * s, "us": {"ours": 100.0}} for m, s in plain.items()
    }
    whole["Qwen2.5-7B"]["us"] |= {"torch ops": 1.0, "ours, CUDA products": 95.0}
    early = {"share_of_bandwidth": {"ours, early": 0.89, "ours, early, 64 KiB ahead": 0.87}}
    loop = {
        "launches_a_step": 0.1, "idle_share": 0.03, "times_passes_alone": 1.01,
        "times_faster_than_baseline": 7.5,
    }  # fmt: skip
    return {
        "decode": {"whole_model": whole, "early": {"Qwen2.5-7B, early": early}},
        "control": {
            "ops": [
                op("rollback", 4.0, 20.0),
                op("reward_accept, value head, 1536", 6.0, 9.0),
                op("reward_accept, value head, 3584", 7.0, 4.9),
                op("score, value head, 1536", 10.5, 30.0),
                op("score, value head, 3584", 9.0, 40.0),
                op("reward_accept, two_class head, 1536", 7.9, 5.0, limit=8.0),
                op("reward_accept, two_class head, 3584", 20.0, 6.0, limit=19.0),
            ]
        },
        "verify": {
            "models": {
                "Qwen2.5-7B": {
                    "1": {"guesses": {"2": {"times_decode": 1.3}, "4": {"times_decode": 1.149}}},
                    "4": {"guesses": {"4": {"times_decode": 1.3}}},
                }
            }
        },
        "weight_formats": {
            "models": {
                "Qwen2.5-7B": {
                    "1": {
                        "plain": {"share_of_bandwidth": 0.9, "times_faster": 1.0},
                        "fp8": {"share_of_bandwidth": 0.85, "times_faster": 1.7},
                        "int8": {"share_of_bandwidth": 0.81, "times_faster": 1.4},
                        "int4": {"share_of_bandwidth": 0.6, "times_faster": 2.2},
                    },
                    "4": {"int4": {"share_of_bandwidth": 0.1, "times_faster": 0.1}},
                }
            }
        },
        "device_loop": {"bars": {name: {"bar": 0, "worst": value} for name, value in loop.items()}},
    }


def test_each_bar_is_judged_by_the_worst_figure() -> None:
    judged = {bar.name: bar for bar in bars.evaluate(results())}
    met = {name: bar.met for name, bar in judged.items()}
    assert [name for name, good in met.items() if not good] == [
        "decode, Qwen2.5-7B, batch 1, 1k context: share of read bandwidth",
        "reward, decision, commit or rollback, value head, 16 slots",
        "reward and decision, two-layer head: twice the read of its weights + 5 us",
        "reward and decision, value head: times faster than PyTorch ops",
        "decode, Qwen2.5-7B in int8, batch 1: times as fast as plain weights",
        "share of the time in which the device stands idle",
    ]
    assert None not in met.values() and len(met) == 20
    assert judged["reward, decision, commit or rollback, value head, 16 slots"].found == 10.5
    seven = judged["decode, Qwen2.5-7B, batch 1, 1k context: share of read bandwidth"]
    assert (seven.found, seven.variant) == (0.89, "ours, early")
    two_layers = judged["reward and decision, two-layer head: twice the read of its weights + 5 us"]
    assert (two_layers.asked, two_layers.found) == (19.0, 20.0)
    verifies = judged["pass that verifies 4 guesses, Qwen2.5-7B, batch 1: times one that decodes"]
    assert (verifies.asked, verifies.found, verifies.part) == (1.15, 1.149, "verify")
    assert judged["seconds of a step over those of its passes replayed alone"].asked == 1.05


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    whole = results()
    whole["decode"]["whole_model"].pop("Qwen2.5-1.5B")
    whole["control"] = None
    whole["verify"] = {"models": {}}
    whole["device_loop"]["bars"]["times_faster_than_baseline"]["worst"] = None
    judged = bars.evaluate(whole)
    words = {bar.name: bar.row()[3] for bar in judged}
    assert [bar.name for bar in judged] == [bar.name for bar in bars.evaluate(results())]
    assert words["decode, Qwen2.5-1.5B, batch 1, 1k context: share of read bandwidth"] == (
        "not measured"
    )
    assert words["times faster than the paper's arrangement, batch 1"] == "not measured"
    assert words["rollback, 16 slots"] == "not measured"
    assert [word for name, word in words.items() if "verifies" in name] == ["not measured"]
    assert words["host launches a step, device loop"] == "met"
    assert {bar.met for bar in bars.evaluate({})} == {None}
    assert "not measured" in bars.table(judged) and "MISSED" in bars.table(judged)


def test_a_bar_says_all_there_is_to_it() -> None:
    [first, *_] = bars.evaluate(results())
    assert first.to_dict() == {
        "name": "decode, Qwen2.5-1.5B, batch 1, 1k context: share of read bandwidth",
        "part": "decode", "asked": 0.75, "found": 0.75, "unit": "", "at_least": True, "met": True,
        "variant": "ours",
    }  # fmt: skip
    assert first.row()[1:] == [">= 0.75", "0.75", "met", "ours"]


def test_formats_that_were_wrong_are_not_measured() -> None:
    made = results()
    made["weight_formats"]["starts_early"] = True
    made["weight_formats"]["models"]["Qwen2.5-7B"]["1"]["int4"] = {"wrong": "far away"}
    judged = {bar.name: bar for bar in bars.evaluate(made)}
    few = judged["decode, Qwen2.5-7B in int4, batch 1: share of read bandwidth"]
    assert (few.asked, few.found, few.met) == (0.5, None, None)
    fp8 = judged["decode, Qwen2.5-7B in fp8, batch 1: times as fast as plain weights"]
    assert (fp8.asked, fp8.found, fp8.met, fp8.variant) == (1.5, 1.7, True, "weight_formats, early")


def test_the_device_loop_says_how_its_kernels_were_launched() -> None:
    made = results()
    made["device_loop"]["starts_early"] = True
    assert [bar.variant for bar in bars.evaluate(made)][-4:] == ["device_loop, early"] * 4
    seven = made["decode"]["whole_model"]["Qwen2.5-7B"]
    seven["wrong"] = "logits are 0.5 of their norm away"
    by_cuda = bars.evaluate(made)[1]
    assert by_cuda.variant == "ours, CUDA products"
    assert by_cuda.found == pytest.approx(80 / 95)
    del seven["wrong"]
    made["decode"]["early"].clear()
    seven["us"]["ours, CUDA products"] = 80.0
    by_cuda = bars.evaluate(made)[1]
    assert (by_cuda.variant, by_cuda.found, by_cuda.met) == ("ours, CUDA products", 1.0, True)
