"""The roles of an engine that servers play: found before anything is loaded, joined to the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rsd_engine.core.remote_steps import RemoteRoles
from rsd_engine.engine.models import ModelSet, OpenModel, PrmModel, WriterModel, differ
from rsd_engine.engine.prompts import naming_model
from rsd_engine.engine.remote.client import RemoteClient
from rsd_engine.engine.remote.model import RemoteModel
from rsd_engine.engine.remote.scoring import RemoteScorer, find_scorer
from rsd_engine.engine.remote.server import RemoteServer, find_server
from rsd_engine.engine.remote.text_format import BYTES_PER_TOKEN, text_family
from rsd_engine.engine.remote.writing import RemoteWriter
from rsd_engine.engine.rewards.prm_options import PrmOptions
from rsd_engine.models.checkpoints.open import Checkpoint, load_tokenizer, open_checkpoint
from rsd_engine.models.checkpoints.stop_ids import read_stop_ids
from rsd_engine.models.reward.family import PrmFormat
from rsd_engine.steps.scorers import Confidence, Scorer
from rsd_engine.steps.vocabulary import read_vocabulary
from rsd_kernels.state.enums import Role
from rsd_kernels.state.slots import SlotSizes

logger = logging.getLogger("rsd_engine")


def find_servers(sources: Mapping[Role, object], scorer: Scorer | None) -> dict[Role, RemoteServer]:
    """The servers of the roles whose models are on one.

    Raises:
        ValueError: a server cannot be used, or the engine cannot work with a role on one.
        ImportError: the `client` extra is not installed.
    """
    away = {role: s for role, s in sources.items() if isinstance(s, RemoteModel)}
    names = [role.name.lower() for role in away]
    if away and sources.get(Role.DRAFT) is None:
        raise ValueError(
            f"{names[0]} is on a server, and no draft is given; a model on a server works together "
            "with a draft that is here: give draft, target and prm or scorer"
        )
    if Role.TARGET in away and scorer is not None and not isinstance(scorer, Confidence):
        raise ValueError(
            f"scorer={type(scorer).__name__} needs a target that is here, and it is on a server; "
            "give prm or Confidence in its place"
        )
    found = {}
    for role, model in away.items():
        with naming_model(role.name.lower()):
            found[role] = find_server(RemoteClient(model))
    return found


@dataclass(frozen=True)
class RemoteSet:
    """What servers add to the models that are here.

    Attributes:
        servers: by role.
        writer: the target, as far as it is here; None if it is not on a server.
        prm: likewise.
        scorer: asks for rewards.
    """

    servers: Mapping[Role, RemoteServer]
    writer: WriterModel | None
    prm: PrmModel | None
    scorer: RemoteScorer | None

    @property
    def max_len(self) -> int | None:
        """Tokens that the target's context holds, if it is on a server that says so."""
        server = self.servers.get(Role.TARGET)
        return server.max_len if server else None

    def sized(self, sizes: SlotSizes, model_len: int) -> SlotSizes:
        """Sizes with room for the context of a PRM on a server; `model_len` is the writers'."""
        server = self.servers.get(Role.PRM)
        if server is None:
            return sizes
        length = 2 * model_len + 128
        length = min(server.max_len or length, length)
        if server.kind == "rsd":
            length = BYTES_PER_TOKEN * model_len
        return replace(sizes, prm_max_len=length)

    def joined(self, models: ModelSet) -> ModelSet:
        """All models, those on servers too."""
        models = replace(models, prm=self.prm or models.prm)
        if self.writer is None:
            return models
        separate = differ(models.writers[Role.DRAFT], self.writer)
        writers = {**models.writers, Role.TARGET: self.writer}
        return replace(models, writers=writers, separate=separate)

    def asked_for_steps(self, models: ModelSet) -> RemoteWriter | None:
        """What asks for the target's steps; None if it is not on a server."""
        if self.writer is None:
            return None
        eos_ids = models.eos_ids_of(self.writer)
        eos_id = self.writer.tokenizer.eos_token_id
        server = self.servers[Role.TARGET]
        return RemoteWriter(server, eos_ids, eos_id if eos_id in eos_ids else None)

    def roles(self, writer: RemoteWriter | None) -> RemoteRoles | None:
        """What the core asks; None if all models are here."""
        if not self.servers:
            return None
        return RemoteRoles(
            write=writer.write if writer else None,
            score=self.scorer.score if self.scorer else None,
            close=self._close,
        )

    def _close(self) -> None:
        for server in self.servers.values():
            server.client.close()


def open_remote(
    servers: Mapping[Role, RemoteServer],
    opened: Mapping[Role, OpenModel],
    options: PrmOptions,
) -> RemoteSet:
    """Reads the tokenizers that belong to models on servers, and checks them.

    Args:
        servers: of the roles that have one.
        opened: the models that are here.
        options: about the PRM.

    Raises:
        ValueError: a tokenizer is missing or another one than the server's; or a server does not
            give rewards.
    """
    writer = prm = scorer = None
    if Role.TARGET in servers:
        with naming_model("target"):
            writer = _open_target(servers[Role.TARGET], opened[Role.DRAFT])
    if Role.PRM in servers:
        with naming_model("prm"):
            prm, scorer = _open_prm(servers[Role.PRM], opened[Role.DRAFT].tokenizer, options)
    for role, server in servers.items():
        length = f", a context of {server.max_len} tokens" if server.max_len else ""
        logger.info(
            "%s: %s at %s (%s)%s",
            role.name.lower(), server.name, server.client.model.url, server.kind, length,
        )  # fmt: skip
    return RemoteSet(servers, writer, prm, scorer)


def _open_target(server: RemoteServer, draft: OpenModel) -> WriterModel:
    """Its tokenizer is the draft's, unless it has one of its own."""
    checkpoint, tokenizer, vocabulary = draft.checkpoint, draft.tokenizer, draft.vocabulary
    stop_ids = draft.stop_ids
    if server.client.model.tokenizer is not None:
        checkpoint = _checkpoint(server)
        tokenizer = load_tokenizer(checkpoint)
        vocabulary, stop_ids = read_vocabulary(tokenizer), read_stop_ids(checkpoint, tokenizer)
    if not server.check_tokenizer(tokenizer):
        logger.info("target: the server does not tell its tokenizer; taken to be the one here")
    return WriterModel(None, tokenizer, vocabulary, checkpoint.generation_config() or {}, stop_ids)


def _open_prm(
    server: RemoteServer, writers_tokenizer: Any, options: PrmOptions
) -> tuple[PrmModel, RemoteScorer]:
    if server.kind == "rsd":
        if options.format is not None or options.separator is not None:
            raise ValueError(
                f"{server.client.model} feeds its PRM itself; leave out prm_format and "
                "prm_separator"
            )
        family, tokenizer = text_family(writers_tokenizer), writers_tokenizer
    elif server.client.model.tokenizer is None:
        raise ValueError(
            f"the model at {server.client.model} needs its tokenizer here: name its checkpoint "
            "with tokenizer=, of which no weights are read"
        )
    else:
        checkpoint = _checkpoint(server)
        family, tokenizer = options.family_of(checkpoint), load_tokenizer(checkpoint)
        server.check_tokenizer(tokenizer)
    form = family.format(tokenizer)
    scorer = find_scorer(server, family, _probe(form))
    return PrmModel(None, family, form, shared_vocabulary=None), scorer


def _probe(form: PrmFormat) -> list[int]:
    """The PRM's context of a question and a step."""
    return [*form.prompt_ids("What is 2 + 3?"), *form.step_tokens("2 + 3 = 5.", is_first=True)]


def _checkpoint(server: RemoteServer) -> Checkpoint:
    source = server.client.model.tokenizer
    assert source is not None
    return open_checkpoint(source, weights=False)
