"""Inspects the checkpoints of an engine without loading their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsd_engine.engine.inspect import checks
from rsd_engine.engine.inspect.checks import Link
from rsd_engine.engine.inspect.facts import ModelFacts, read_facts
from rsd_engine.engine.inspect.finding import Finding, problem
from rsd_engine.engine.inspect.memory import Machine, MemoryFit, fit_memory
from rsd_engine.engine.inspect.roles import Roles, assign_roles
from rsd_engine.engine.memory_estimate import max_length_of
from rsd_kernels.state.enums import Role


@dataclass(frozen=True)
class InspectedModel:
    """A model that was asked about.

    Attributes:
        role: what it would be in an engine; None if it could not be read or has no place.
        facts: None if it could not be read; `error` then says why.
    """

    source: str
    role: Role | None
    facts: ModelFacts | None
    error: str | None


@dataclass(frozen=True)
class Inspection:
    """What the checkpoints are, and whether an engine can be made of them.

    Attributes:
        machine: where they would run.
        models: in the order of their roles, then those without a role.
        links: between draft and target, and between the writer and the PRM.
        max_model_len: most tokens of prompt and output; None without a writer.
        prm_max_len: most tokens of the PRM's context; None without a PRM or a writer.
        memory: None without a writer.
        findings: problems and what is in order.
    """

    machine: Machine
    models: tuple[InspectedModel, ...]
    links: Mapping[tuple[Role, Role], Link]
    max_model_len: int | None
    prm_max_len: int | None
    memory: MemoryFit | None
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
    max_model_len: int | None = None,
) -> Inspection:
    """Reads configs and tokenizers, and checks what an engine would check.

    What is wrong with a checkpoint, or with all of them together, is a finding, not an error.

    Args:
        named: models whose role is given.
        others: models whose role is to be found (`assign_roles`).
        machine: where they would run.
        revision: branch, tag or commit of hub ids.
        max_model_len: as of `Engine`.

    Raises:
        ValueError: `max_model_len` is not in the contexts of draft and target.
    """
    sources = [*named.values(), *others]
    read = {source: _read(source, revision) for source in dict.fromkeys(sources)}
    facts = {source: found for source, found in read.items() if isinstance(found, ModelFacts)}
    roles, findings = assign_roles(
        {role: facts[source] for role, source in named.items() if source in facts},
        [facts[source] for source in others if source in facts],
    )
    models = _inspected(sources, read, roles)
    errors = [problem("checkpoint", model.error) for model in models if model.error]
    if errors:  # which roles are missing is not known then
        findings = [finding for finding in findings if finding.is_problem]
    links = _links(roles)
    model_len = _model_len(roles, max_model_len)
    memory = None if model_len is None else fit_memory(roles, machine, model_len)
    prm_len = None
    if model_len is not None and Role.PRM in roles:
        prm_len = max_length_of(Role.PRM, model_len, roles[Role.PRM].config)
    return Inspection(
        machine=machine,
        models=models,
        links=links,
        max_model_len=model_len,
        prm_max_len=prm_len,
        memory=memory,
        findings=(*errors, *findings, *_check(roles, links, model_len, memory)),
    )


def _read(source: str | Path, revision: str | None) -> ModelFacts | str:
    """What the checkpoint is, or why it cannot be read."""
    try:
        return read_facts(source, revision)
    except (ValueError, OSError, ImportError) as error:
        return " ".join(str(error).split())


def _inspected(
    sources: Sequence[str | Path], read: Mapping[str | Path, ModelFacts | str], roles: Roles
) -> tuple[InspectedModel, ...]:
    found = [InspectedModel(model.source, role, model, None) for role, model in roles.items()]
    shown = {id(model) for model in roles.values()}
    for source in dict.fromkeys(sources):
        model = read[source]
        if isinstance(model, str):
            found.append(InspectedModel(str(source), None, None, model))
        elif id(model) not in shown:
            found.append(InspectedModel(model.source, None, model, None))
    return tuple(found)


def _links(roles: Roles) -> dict[tuple[Role, Role], Link]:
    writer = Role.TARGET if Role.TARGET in roles else Role.DRAFT
    pairs = [(Role.DRAFT, Role.TARGET), (writer, Role.PRM)]
    return {pair: checks.find_link(*pair, roles) for pair in pairs if set(pair) <= set(roles)}


def _model_len(roles: Roles, asked: int | None) -> int | None:
    contexts = [m.config.max_position_embeddings for r, m in roles.items() if r != Role.PRM]
    if not contexts:
        return None
    allowed = min(contexts)
    if asked is not None and not 2 <= asked <= allowed:
        raise ValueError(
            f"max_model_len must be in [2, {allowed}], the context of draft and target, got {asked}"
        )
    return asked or allowed


def _check(
    roles: Roles,
    links: Mapping[tuple[Role, Role], Link],
    model_len: int | None,
    memory: MemoryFit | None,
) -> list[Finding]:
    found = [finding for role, m in roles.items() for finding in checks.check_stored(role, m)]
    if (Role.DRAFT, Role.TARGET) in links:
        found += checks.check_writers(roles, links[Role.DRAFT, Role.TARGET])
    if Role.PRM in roles:
        link = next((link for (_, other), link in links.items() if other == Role.PRM), None)
        found += checks.check_prm(roles[Role.PRM], link)
    found += checks.check_stop_tokens(roles) + checks.check_template(roles)
    if model_len is not None and memory is not None:
        found += [*checks.check_contexts(roles, model_len), memory.finding()]
    return found
