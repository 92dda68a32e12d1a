"""An inspection as one line of JSON; `docs/inspect.md` describes the keys."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import typer

from rsd_engine.engine.inspect.inspection import InspectedModel, Inspection
from rsd_engine.engine.inspect.memory import memory_dict
from rsd_engine.models.rope_config import RopeConfig
from rsd_kernels.state.enums import Role


def print_json(found: Inspection) -> None:
    typer.echo(json.dumps(to_dict(found)))


def to_dict(found: Inspection) -> dict[str, Any]:
    """JSON-ready values, in bytes and tokens."""
    fit = found.fit
    return {
        "fits": found.fits,
        "findings": [
            {"verdict": "problem" if f.is_problem else "ok", "subject": f.subject, "text": f.text}
            for f in found.findings
        ],
        "models": [_model(model) for model in found.models],
        "links": {f"{_name(a)}-{_name(b)}": asdict(link) for (a, b), link in found.links.items()},
        "max_model_len": fit.model_len if fit else None,
        "prm_max_len": fit.max_len.get(Role.PRM) if fit else None,
        "device": found.machine.device.type,
        "available": found.machine.available,
        "max_num_seqs": found.machine.max_num_seqs,
        "memory": memory_dict(fit, found.machine) if fit else None,
    }


def _model(model: InspectedModel) -> dict[str, Any]:
    named = {
        "source": model.source,
        "role": None if model.role is None else _name(model.role),
        "error": model.error,
    }
    facts, loaded = model.facts, model.loaded
    if facts is None or loaded is None:
        return named
    config = facts.config
    return named | {
        "kind": "prm" if facts.prm else "writer",
        "architecture": config.architecture,
        "family": facts.family,
        "format": facts.storage.format,
        "num_files": facts.storage.num_files,
        "file_bytes": facts.storage.num_bytes,
        "dtype": str(config.dtype).removeprefix("torch."),
        "parameters": config.num_parameters,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_q_heads": config.num_q_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "context": config.max_position_embeddings,
        "ropes": [_rope(rope) for rope in facts.ropes],
        "vocab_size": config.vocab_size,
        "num_tokens": facts.vocabulary.num_tokens,
        "chat_template": facts.has_chat_template,
        "stop_tokens": [asdict(token) for token in facts.stop_tokens],
        "special_tokens": {name: asdict(t) for name, t in facts.special_tokens.items()},
        "weight_bytes": loaded.memory.weights,
        "formats": [asdict(share) for share in loaded.shares],
        "formats_elsewhere": [asdict(share) for share in loaded.elsewhere],
        "kv_bytes_per_token": config.kv_shape(loaded.memory.dtype).bytes_per_token,
        "prm": asdict(facts.prm) if facts.prm else None,
    }


def _rope(rope: RopeConfig) -> dict[str, Any]:
    return {
        "type": rope.type,
        "theta": rope.theta,
        "factor": rope.factor,
        "original_context": rope.original_max_position or None,
    }


def _name(role: Role) -> str:
    return role.name.lower()
