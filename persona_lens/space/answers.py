"""Answers in roles: what a model says, and where its residual stream is, while it plays one character after another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import FileFormatError, InvalidArgumentError, ModelMismatchError
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import RolloutRequest, sample_recorded_rollouts
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.run import Run
from persona_lens.storage import Shard, collect_versions, load_shard, save_shard
from persona_lens.streams import Stream
from persona_lens.texts import check_texts
from persona_lens.traits.roles import ASSISTANT, Role

_FORMAT, _VERSION = "persona-lens-role-answers", 2


@checked
@dataclass(frozen=True, eq=False, repr=False)
class RoleAnswers:
    """Every role's answers to the same questions, with their mean residual stream.

    In memory ``4 * role * question * layer * d_model`` bytes: 95 MB for 57 roles, 24 questions and the embedded model.

    Args:
        model: Who answered.
        roles: Their names.
        kinds: Their kinds, as authored.
        questions: What was asked.
        means: Mean over an answer's tokens, averaged over a question's answers; float32, in residual-stream units.
        texts: The answers' texts, by role, question and answer; those without text are left out.
        empty: How many answers were without text, which no mean includes, by role and question.
        provenance: Seed, settings, the roles' fingerprints and library versions.

    Raises:
        InvalidArgumentError: Names, means and texts that do not fit each other, or means that are not finite.
    """

    model: ModelInfo
    roles: tuple[str, ...]
    kinds: tuple[str, ...]
    questions: tuple[str, ...]
    means: Float[Tensor, "role question layer d_model"]
    texts: tuple[tuple[tuple[str, ...], ...], ...]
    empty: tuple[tuple[int, ...], ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = (len(self.roles), len(self.questions), self.model.n_layers, self.model.d_model)
        if tuple(self.means.shape) != expected:
            rule = f"have shape (role, question, layer, d_model) = {expected}"
            raise InvalidArgumentError.of("means", rule, tuple(self.means.shape))
        if not bool(torch.isfinite(self.means).all()):
            raise InvalidArgumentError.of("means", "be finite", "NaN or infinity")
        if len(set(self.roles)) != len(self.roles):
            raise InvalidArgumentError.of("roles", "name no role twice", list(self.roles))
        if len(self.kinds) != len(self.roles):
            raise InvalidArgumentError.of("kinds", f"be as many as there are roles, {len(self.roles)}", len(self.kinds))
        for name, rows in (("texts", self.texts), ("empty", self.empty)):
            asked = [len(row) for row in rows]
            if asked != [len(self.questions)] * len(self.roles):
                raise InvalidArgumentError.of(name, "hold each role's answers to each question", asked)

    @property
    def n_empty(self) -> int:
        """How many answers were without text."""
        return sum(map(sum, self.empty))

    @property
    def assistant(self) -> Float[Tensor, "question layer d_model"]:
        """What is there of the assistant.

        Raises:
            InvalidArgumentError: It is not among the roles.
        """
        return self.means[self._find(ASSISTANT)]

    @property
    def characters(self) -> RoleAnswers:
        """The roles other than the assistant.

        Raises:
            InvalidArgumentError: There is none.
        """
        return self.take([name for name in self.roles if name != ASSISTANT])

    def take(self, roles: Iterable[str]) -> RoleAnswers:
        """Return some roles' answers, in the order given.

        Raises:
            InvalidArgumentError: No role, or one that is not there.
        """
        at = [self._find(name) for name in roles]
        if not at:
            raise InvalidArgumentError.of("roles", f"name some of {', '.join(self.roles)}", [])
        return replace(
            self,
            roles=tuple(self.roles[i] for i in at),
            kinds=tuple(self.kinds[i] for i in at),
            means=self.means[at],
            texts=tuple(self.texts[i] for i in at),
            empty=tuple(self.empty[i] for i in at),
        )

    def ask(self, at: Sequence[int]) -> RoleAnswers:
        """Return the answers to some questions, by their numbers.

        Raises:
            InvalidArgumentError: No question, or a number that is none's.
        """
        if not at or not all(0 <= one < len(self.questions) for one in at):
            raise InvalidArgumentError.of("at", f"hold numbers in [0, {len(self.questions)})", list(at))
        return replace(
            self,
            questions=tuple(self.questions[i] for i in at),
            means=self.means[:, list(at)],
            texts=tuple(tuple(row[i] for i in at) for row in self.texts),
            empty=tuple(tuple(row[i] for i in at) for row in self.empty),
        )

    def __add__(self, other: RoleAnswers) -> RoleAnswers:
        """Put the answers of other roles to the same questions beside these.

        Raises:
            InvalidArgumentError: Other questions, or a role that both have.
            ModelMismatchError: Another model.
        """
        if other.model != self.model:
            raise ModelMismatchError.of("other", f"come from the same model, {self.model.name}", other.model.name)
        if other.questions != self.questions:
            raise InvalidArgumentError.of("other", "answer the same questions", list(other.questions))
        return replace(
            self,
            roles=self.roles + other.roles,
            kinds=self.kinds + other.kinds,
            means=torch.cat([self.means, other.means]),
            texts=self.texts + other.texts,
            empty=self.empty + other.empty,
            provenance={"parts": [*self._list_parts(), *other._list_parts()]},
        )

    def _list_parts(self) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = self.provenance.get("parts", [self.provenance])
        return parts

    def _find(self, role: str) -> int:
        if role not in self.roles:
            raise InvalidArgumentError.of("roles", f"be among those that answered: {', '.join(self.roles)}", role)
        return self.roles.index(role)

    def save(self, path: str | Path) -> None:
        """Write the answers as safetensors, their texts as JSON in the header."""
        rest = {name: getattr(self, name) for name in ("roles", "kinds", "questions", "texts", "empty", "provenance")}
        head = {"format": _FORMAT, "version": _VERSION, "model": self.model.to_json()}
        save_shard(Path(path), Shard({"means": self.means}, {**head, **rest}))

    @classmethod
    def load(cls, path: str | Path) -> RoleAnswers:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            FileFormatError: A truncated file, or one that holds no such answers.
        """
        shard = load_shard(Path(path))
        found = shard.records if isinstance(shard.records, Mapping) else {}
        if found.get("format") != _FORMAT or found.get("version") != _VERSION or set(shard.tensors) != {"means"}:
            rule = f"name a file of role answers, version {_VERSION}"
            raise FileFormatError.of("path", rule, str(path), "Sample them again with sample_roles.")
        try:
            return cls(
                model=ModelInfo(**found["model"]),
                roles=tuple(found["roles"]),
                kinds=tuple(found["kinds"]),
                questions=tuple(found["questions"]),
                means=shard.tensors["means"],
                texts=tuple(tuple(tuple(texts) for texts in row) for row in found["texts"]),
                empty=tuple(map(tuple, found["empty"])),
                provenance=found["provenance"],
            )
        except KeyError as error:
            raise FileFormatError.of("path", f"name a file of role answers with {error}", str(path)) from error
        except (InvalidArgumentError, TypeError) as error:
            raise FileFormatError(f"`path` must name role answers whose parts fit each other: {error}") from error

    def __repr__(self) -> str:
        return (
            f"RoleAnswers({len(self.roles)} roles × {len(self.questions)} questions on {self.model.name!r}, "
            f"{sum(len(texts) for row in self.texts for texts in row)} answers, {self.n_empty} empty)"
        )


@checked
def sample_roles(
    model: HookedModel,
    roles: Sequence[Role],
    questions: Sequence[str],
    *,
    prompts_each: int | None = None,
    sampling: Sampling = Sampling(),
    run: Run = Run(),
) -> RoleAnswers:
    """Ask the same questions in every role, and keep each answer's mean residual stream.

    The residual stream is pooled while the answers are sampled. All roles see the same random numbers.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        roles: The roles; :func:`persona_lens.traits.load_role` with ``assistant`` gives what others are measured from.
        questions: At least two.
        prompts_each: Under how many of a role's system prompts each question is asked; they take turns, so that every
            prompt is used. None takes all of them, as the paper does.
        sampling: How the answers are drawn; ``rollouts`` under each system prompt.
        run: Keeps each finished role, shows progress and says who computes.

    Returns:
        The answers, by role and question.

    Raises:
        InvalidArgumentError: Too few questions, a role twice, or a role without any answer to a question.
        HooksPresentError: The model carries hooks.

    Reference:
        The Assistant Axis (arXiv 2601.10387), section 2.

    Example:
        >>> import persona_lens as pl
        >>> roles = [pl.traits.load_role(name) for name in ("assistant", "pirate", "poet")]
        >>> questions = pl.traits.load_role_questions()
        >>> answers = pl.space.sample_roles(pl.load_model(), roles, questions, prompts_each=1)  # doctest: +SKIP
    """
    questions = check_texts("questions", questions)
    if len(questions) < 2:
        raise InvalidArgumentError.of("questions", "be at least two", list(questions))
    names = [role.name for role in roles]
    if not names or len(set(names)) != len(names):
        raise InvalidArgumentError.of("roles", "be at least one, and none twice", names)
    if prompts_each is not None and prompts_each < 1:
        raise InvalidArgumentError.of("prompts_each", "be at least 1, or None for all", prompts_each)
    check_unsteered(model)
    pieces = [partial(_load_or_ask, model, role, tuple(questions), prompts_each, sampling, run) for role in roles]
    shards = []
    with run.progress("roles", len(roles)) as advance:
        for shard in run.compute_each(pieces):
            shards.append(shard)
            advance(1)
    provenance = {
        "roles": {role.name: role.fingerprint for role in roles},
        "prompts_each": prompts_each,
        "sampling": sampling.to_json(),
        "versions": collect_versions(),
    }
    return RoleAnswers(
        model=describe_model(model),
        roles=tuple(names),
        kinds=tuple(role.kind for role in roles),
        questions=tuple(questions),
        means=torch.stack([shard.tensors["means"] for shard in shards]),
        texts=tuple(tuple(map(tuple, shard.records["texts"])) for shard in shards),
        empty=tuple(
            tuple(_count_prompts(role, prompts_each) * sampling.rollouts - len(said) for said in shard.records["texts"])
            for role, shard in zip(roles, shards, strict=True)
        ),
        provenance=provenance,
    )


def _load_or_ask(
    model: HookedModel, role: Role, questions: tuple[str, ...], prompts_each: int | None, sampling: Sampling, run: Run
) -> Shard:
    """Return one role's answers; each is kept by itself, so that a role may be added later."""
    part = run.part(
        {
            "work": "role",
            "model": describe_model(model).to_json(),
            "role": asdict(role),
            "questions": list(questions),
            "prompts_each": prompts_each,
            "sampling": sampling.to_json(),
        }
    )
    return part.load_or_compute("role", partial(_ask, model, role, questions, prompts_each, sampling))


def _ask(
    model: HookedModel, role: Role, questions: tuple[str, ...], prompts_each: int | None, sampling: Sampling
) -> Shard:
    n_prompts = len(role.system_prompts)
    each = _count_prompts(role, prompts_each)
    asked = [
        (q, RolloutRequest(question, (sampling.seed, Stream.ROLES, q, turn, r), role.system_prompts[prompt]))
        for q, question in enumerate(questions)
        for turn in range(each)
        for prompt in [(q * each + turn) % n_prompts]
        for r in range(sampling.rollouts)
    ]
    rollouts = sample_recorded_rollouts(model, [request for _, request in asked], sampling)
    sums = torch.zeros(len(questions), model.cfg.n_layers, model.cfg.d_model)
    texts: list[list[str]] = [[] for _ in questions]
    for (q, _), rollout in zip(asked, rollouts, strict=True):
        if rollout.response.strip() and rollout.residuals is not None:
            sums[q] += rollout.residuals.response_mean.cpu()
            texts[q].append(rollout.response)
    silent = [question for question, said in zip(questions, texts, strict=True) if not said]
    if silent:
        hint = "Leave the question out, or raise `rollouts` or `prompts_each`."
        raise InvalidArgumentError.of("questions", f"draw an answer from {role.name!r}", silent, hint)
    n_answers = torch.tensor([float(len(said)) for said in texts])
    return Shard({"means": sums / n_answers[:, None, None]}, {"texts": texts})


def _count_prompts(role: Role, prompts_each: int | None) -> int:
    """Return under how many system prompts each question is asked."""
    n_prompts = len(role.system_prompts)
    return min(prompts_each or n_prompts, n_prompts)
