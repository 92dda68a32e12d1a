"""Reading a vocabulary of 150,000 tokens takes long: an engine reads each once."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rsd_engine import Engine
from rsd_engine.steps import sharing, vocabulary
from tests.tiny_models import TinyModels


@pytest.mark.parametrize("own_prm_tokenizer", [False, True])
@pytest.mark.parametrize("same_writers", [False, True])
def test_each_is_read_once_and_each_pair_compared_once(
    tiny: TinyModels,
    other_prm: TinyModels,
    monkeypatch: pytest.MonkeyPatch,
    own_prm_tokenizer: bool,
    same_writers: bool,
) -> None:
    read = counted(vocabulary, "read_vocabulary", monkeypatch)
    compared = counted(sharing, "first_difference", monkeypatch)
    sources = (other_prm if own_prm_tokenizer else tiny).sources()
    if same_writers:
        sources["draft"] = sources["target"]
    with Engine(**sources, device="cpu", max_num_seqs=1) as engine:
        assert (engine.parts.core.loop.merges is None) == own_prm_tokenizer
    assert len(read) == (2 if same_writers else 3)
    assert len(compared) == 2  # of draft and target, of target and PRM


def counted(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of a function, whichever module calls it."""
    function, calls = getattr(module, name), list[tuple[Any, ...]]()

    def call(*args: Any) -> Any:
        calls.append(args)
        return function(*args)

    for user in [m for found, m in sys.modules.items() if found.startswith("rsd_engine")]:
        if vars(user).get(name) is function:
            monkeypatch.setattr(user, name, call)
    return calls
