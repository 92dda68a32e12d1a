"""Inspects the checkpoints of an engine without loading their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rsd_engine.engine.inspect import checks
from rsd_engine.engine.inspect.checks import Link
from rsd_engine.engine.inspect.facts import ModelFacts, read_facts
from rsd_engine.engine.inspect.finding import Finding, problem
from rsd_engine.engine.inspect.memory import LoadedModel, Machine, find_fit
from rsd_engine.engine.inspect.roles import Roles, assign_roles
from rsd_engine.engine.memory_fit import MemoryFit
from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_kernels.state.enums import Role

_WRITERS = (Role.DRAFT, Role.TARGET)


@dataclass(frozen=True)
class InspectedModel:
    """A model that was asked about.

    Attributes:
        role: what it would be in an engine; None if it could not be read or has no place.
        facts, loaded: None if it could not be read; `error` then says why.
    """

    source: str
    role: Role | None
    facts: ModelFacts | None
    loaded: LoadedModel | None
    error: str | None


@dataclass(frozen=True)
class Inspection:
    """What the checkpoints are, and whether an engine can be made of them.

    Attributes:
        machine: where they would run.
        models: in the order of their roles, then those without a role.
        links: between draft and target, and between the writer and the PRM.
        fit: contexts and pages; None without a writer, or if an engine would not start.
        findings: problems and what is in order.
    """

    machine: Machine
    models: tuple[InspectedModel, ...]
    links: Mapping[tuple[Role, Role], Link]
    fit: MemoryFit | None
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_problem]

    @property
    def fits(self) -> bool:
        return not self.problems


def inspect_models(
    named: Mapping[Role, str | Path],
    others: Sequence[str | Path],
    machine: Machine,
    *,
    revision: str | None = None,
    prm_options: PrmOptions | None = None,
) -> Inspection:
    """Reads configs and tokenizers, and checks what an engine would check.

    What is wrong with a checkpoint, or with all of them together, is a finding, not an error.

    Args:
        named: models whose role is given.
        others: models whose role is to be found (`assign_roles`).
        machine: where they would run.
        revision: branch, tag or commit of hub ids.
        prm_options: how the model that is named as PRM is fed; None goes by what it tells.
    """
    sources = [*named.values(), *others]
    options = {named[Role.PRM]: prm_options} if Role.PRM in named else {}
    read = {
        source: _read(source, revision, machine, options.get(source))
        for source in dict.fromkeys(sources)
    }
    facts = {source: found.facts for source, found in read.items() if found.facts}
    roles, findings = assign_roles(
        {role: facts[source] for role, source in named.items() if source in facts},
        [facts[source] for source in others if source in facts],
    )
    models = _in_order(read.values(), roles)
    errors = [problem("checkpoint", model.error) for model in models if model.error]
    if errors:  # which roles are missing is not known then
        findings = [finding for finding in findings if finding.is_problem]
    links = _links(roles)
    models, refused = _quantised(models, machine)
    found = [*errors, *findings, *refused, *_check(roles, links)]
    fit = None
    if any(role != Role.PRM for role in roles):
        memory = {m.role: m.loaded.memory for m in models if m.role is not None and m.loaded}
        fit, told = find_fit(memory, machine)
        if fit:
            found += checks.check_contexts(roles, fit, machine.max_model_len)
        found.append(told)
    return Inspection(machine, models, links, fit, tuple(found))


def _read(
    source: str | Path, revision: str | None, machine: Machine, prm_options: PrmOptions | None
) -> InspectedModel:
    """What the checkpoint is, or why it cannot be read; its role is not known yet."""
    try:
        facts = read_facts(source, revision, prm_options)
        return InspectedModel(facts.source, None, facts, machine.load(facts), None)
    except (ValueError, OSError, ImportError) as error:
        return InspectedModel(str(source), None, None, None, " ".join(str(error).split()))


def _in_order(read: Iterable[InspectedModel], roles: Roles) -> tuple[InspectedModel, ...]:
    """The models by role, twice if a model has two; then those without one."""
    models = list(read)
    found = {id(model.facts): model for model in models if model.facts}
    placed = [replace(found[id(facts)], role=role) for role, facts in roles.items()]
    used = {id(facts) for facts in roles.values()}
    return (*placed, *(model for model in models if id(model.facts) not in used))


def _quantised(
    models: Sequence[InspectedModel], machine: Machine
) -> tuple[tuple[InspectedModel, ...], list[Finding]]:
    """The models with their weights rounded as is asked, and what cannot be rounded."""
    found, findings = [], _unknown_roles(models, machine)
    loaded: dict[tuple[str, str], LoadedModel] = {}  # one for roles that share a model
    for model in models:
        role, facts = model.role, model.facts
        asked = None if role is None else machine.opening.quantization_of(role.name.lower())
        if facts and asked:
            key = (model.source, asked)
            try:
                if key not in loaded:
                    loaded[key] = machine.load(facts, role)
                model = replace(model, loaded=loaded[key])
            except ValueError as error:
                findings.append(problem("quantization", str(error)))
        found.append(model)
    return tuple(found), findings


def _unknown_roles(models: Sequence[InspectedModel], machine: Machine) -> list[Finding]:
    """Whether weights are to be rounded of a role that is not there; not told of those unread."""
    roles = [model.role.name.lower() for model in models if model.role is not None]
    try:
        if all(model.facts for model in models):
            machine.opening.check(roles)
    except ValueError as error:
        return [problem("quantization", str(error))]
    return []


def _links(roles: Roles) -> dict[tuple[Role, Role], Link]:
    writer = Role.TARGET if Role.TARGET in roles else Role.DRAFT
    pairs = [_WRITERS, (writer, Role.PRM)]
    return {pair: checks.find_link(*pair, roles) for pair in pairs if set(pair) <= set(roles)}


def _check(roles: Roles, links: Mapping[tuple[Role, Role], Link]) -> list[Finding]:
    found = [finding for role, m in roles.items() for finding in checks.check_stored(role, m)]
    if _WRITERS in links:
        found += checks.check_writers(roles, links[_WRITERS])
    if Role.PRM in roles:
        link = next((link for (_, other), link in links.items() if other == Role.PRM), None)
        found += checks.check_prm(roles[Role.PRM], link, links.get(_WRITERS))
    return [
        *found,
        *checks.check_stop_tokens(roles, links.get(_WRITERS)),
        *checks.check_template(roles),
    ]
