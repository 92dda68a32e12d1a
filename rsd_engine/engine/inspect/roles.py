"""Which of the given checkpoints is the draft, the target and the PRM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rsd_engine.engine.inspect.facts import ModelFacts
from rsd_engine.engine.inspect.finding import Finding, ok, problem
from rsd_kernels.state.enums import Role

Roles = dict[Role, ModelFacts]
_WRITERS = (Role.DRAFT, Role.TARGET)


def assign_roles(
    named: Mapping[Role, ModelFacts], others: Sequence[ModelFacts]
) -> tuple[Roles, list[Finding]]:
    """Gives every checkpoint the role that it was named for, or one that it can play.

    A reward model is the PRM. Of two writers the one with fewer parameters is the draft; a single
    one is the target.

    Args:
        named: those whose role the user said.
        others: those whose role is to be found.

    Returns:
        The roles, each played by a model of the right kind, and what is wrong with the rest.
    """
    findings = [_wrong_kind(role, m) for role, m in named.items() if not _can_play(role, m)]
    roles = {role: model for role, model in named.items() if _can_play(role, model)}
    free = [role for role in _WRITERS if role not in named]
    writers = sorted((m for m in others if m.prm is None), key=_size)
    if len(writers) == 1 and Role.TARGET in free:
        free = [Role.TARGET]
    roles |= dict(zip(free, writers, strict=False))
    findings += [_left_over(model, "language model") for model in writers[len(free) :]]
    prms = [model for model in others if model.prm is not None]
    if prms and Role.PRM not in named:
        roles[Role.PRM] = prms.pop(0)
    findings += [_left_over(model, "reward model") for model in prms]
    if not findings:
        findings.append(_enough(roles))
    return dict(sorted(roles.items())), findings


def _size(model: ModelFacts) -> int:
    return model.config.num_parameters


def _can_play(role: Role, model: ModelFacts) -> bool:
    return (role == Role.PRM) == (model.prm is not None)


def _wrong_kind(role: Role, model: ModelFacts) -> Finding:
    is_prm = model.prm is not None
    kind = "a reward model" if is_prm else "a language model"
    instead = "--prm" if is_prm else "--draft or --target"
    return problem(
        "roles",
        f"--{role.name.lower()} is {model.source}, {kind} ({model.config.architecture}); give it "
        f"as {instead}",
    )


def _left_over(model: ModelFacts, kind: str) -> Finding:
    return problem(
        "roles",
        f"{model.source} is one {kind} too many; an engine takes a draft, a target and one PRM",
    )


def _enough(roles: Roles) -> Finding:
    """Whether an engine can be made of these roles."""
    if len(roles) == len(Role):
        return ok("roles", "draft, target and PRM")
    if len(roles) == 1 and Role.PRM not in roles:
        return ok("roles", "one writer alone: plain decoding, no step is scored")
    names = {role: "PRM" if role == Role.PRM else role.name.lower() for role in Role}
    given = " and ".join(names[role] for role in sorted(roles))
    names[Role.PRM] = "PRM or a scorer"
    missing = " and a ".join(name for role, name in names.items() if role not in roles)
    return ok("roles", f"{given}; an engine also needs a {missing}, or runs one writer alone")
