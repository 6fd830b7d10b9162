"""Persona space: roles' vectors side by side, the directions in which they differ, and what lies along them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import ModelInfo
from persona_lens.records import Record, format_table
from persona_lens.space.answers import RoleAnswers
from persona_lens.space.components import Components, find_components, match_components, unit_or_zero
from persona_lens.statistics import Interval
from persona_lens.statistics.bootstrap import Resampled, check_resampling, draw_multinomial
from persona_lens.statistics.correlation import fisher_interval, pearson_r
from persona_lens.streams import Stream
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# A component may lose its rank in a resample: it is looked for among so many more.
_MORE = 2


@checked
@dataclass(frozen=True)
class ComponentVariance(Record):
    """What a component explains, and how far that is more than chance.

    Args:
        share: Of the variance between the roles' means.
        variance: In squared residual-stream units.
        null_variance: That of the same component where each question's answers are dealt out to the roles by chance;
            19 of 20 such deals have at most this.
        null_share: The mean share under such deals.
        half_cosine: Between the component of even and that of odd questions; absolute.
        null_half_cosine: The same where answers are dealt out by chance; 19 of 20 deals have at most this.
        half_correlation: Pearson's r, over roles, between the coordinates in the two halves.
        null_half_correlation: The same where answers are dealt out by chance; 19 of 20 deals have at most this. None
            where that was not kept.
    """

    share: float
    variance: float
    null_variance: float
    null_share: float
    half_cosine: float
    null_half_cosine: float
    half_correlation: float
    null_half_correlation: float | None = None

    @property
    def is_beyond_chance(self) -> bool:
        """Whether it explains more than such components of shuffled answers."""
        return self.variance > self.null_variance


@checked
@dataclass(frozen=True)
class Placed(Record):
    """One role or vector in persona space.

    Args:
        name: Its name.
        kind: The role's kind; ``vector`` for a persona vector.
        coordinates: Along the components, from the mean over roles, in residual-stream units; of a vector none.
        cosines: With each component, with intervals over questions.
        axis: Cosine with the axis from the roles to the assistant, likewise.
    """

    name: str
    kind: str
    coordinates: tuple[float, ...]
    cosines: tuple[Interval, ...]
    axis: Interval


@checked
@dataclass(frozen=True, eq=False, repr=False)
class PersonaSpace(Record):
    """The principal components of a model's roles, and what lies where.

    Args:
        model: The model.
        layer: Zero-based block index.
        n_questions: Questions that the roles answered.
        center: Mean over the roles.
        components: Unit vectors; each points to the side on which the assistant lies.
        variances: What each explains.
        noise_share: How much of all variance between the roles' means is there too where answers are dealt out by
            chance.
        roles: Where each role lies.
        assistant: Where the assistant lies, which took no part in finding the components.
        vectors: How persona vectors lie.
        n_resamples: Of the questions, for the intervals.
        n_shuffles: Deals of answers to roles, for the nulls.
        seed: Of both.
    """

    model: ModelInfo
    layer: int
    n_questions: int
    center: Float[Tensor, " d_model"]
    components: Float[Tensor, "component d_model"]
    variances: tuple[ComponentVariance, ...]
    noise_share: float
    roles: tuple[Placed, ...]
    assistant: Placed
    vectors: tuple[Placed, ...]
    n_resamples: int
    n_shuffles: int
    seed: int

    @property
    def axis_cosines(self) -> tuple[Interval, ...]:
        """Cosines with each component of the axis, which leads from the mean over roles to the assistant."""
        return self.assistant.cosines

    def rank(self, component: int) -> list[Placed]:
        """Return the roles by their cosine with a component, those on the assistant's side first.

        Raises:
            InvalidArgumentError: There is no such component.
        """
        if not 0 <= component < len(self.variances):
            raise InvalidArgumentError.of("component", f"be in [0, {len(self.variances)})", component)
        return sorted(self.roles, key=lambda role: -role.cosines[component].estimate)

    def count_further_out(self, component: int) -> int:
        """Return how many roles point along a component, to either side, more closely than the assistant does.

        A component that explains much lies near every role, so that a cosine says little by itself; among roles drawn
        alike the assistant's would have an even rank.

        Raises:
            InvalidArgumentError: There is no such component.
        """
        ranked = self.rank(component)
        own = abs(self.assistant.cosines[component].estimate)
        return sum(abs(one.cosines[component].estimate) > own for one in ranked)

    def project(self, means: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch component"]:
        """Return the coordinates of residual streams of :attr:`layer`, from the mean over roles.

        Raises:
            InvalidArgumentError: Another width.
        """
        if means.shape[-1] != len(self.center):
            raise InvalidArgumentError.of("means", f"be {len(self.center)} wide", tuple(means.shape))
        centered = means.detach().cpu().double() - self.center.double()
        return (centered @ self.components.double().T).float()

    def plot(self) -> Figure:
        """Draw the roles in the first two components, what each explains, and what loads on them."""
        from persona_lens.plots.space import draw_space

        return draw_space(self)

    def __repr__(self) -> str:
        shares = ", ".join(f"{one.share:.0%}" for one in self.variances)
        return (
            f"PersonaSpace({len(self.roles)} roles of {self.model.name!r}, layer {self.layer}; components explain "
            f"{shares}; axis with the first {self.axis_cosines[0]})"
        )

    def _repr_html_(self) -> str:
        rows = [(one.name, one.kind, *one.cosines[:2], one.axis) for one in (self.assistant, *self.rank(0))]
        head = ("role", "kind", *(f"component {k + 1}" for k in range(len(self.variances[:2]))), "axis")
        return format_table(f"Cosines at layer {self.layer}", rows, head)


@checked
def find_persona_space(
    answers: RoleAnswers,
    layer: int,
    *,
    vectors: Mapping[str, PersonaVector] | None = None,
    n_components: int = 4,
    n_resamples: int = 500,
    n_shuffles: int = 200,
    seed: int = 0,
) -> PersonaSpace:
    """Find the directions in which roles differ, how sure they are, and what lies along them.

    The components are those of the roles' means over questions, the assistant left out. Intervals resample questions
    and find everything anew, each component matched with the original it is most like. The null deals each question's
    answers out to the roles by chance: what is left then is the spread of means over a few noisy answers.

    Args:
        answers: Of the assistant and of at least ``n_components + 2`` other roles, to at least four questions.
        layer: Zero-based block index; the paper's is in the middle.
        vectors: Persona vectors of the same model to be placed too.
        n_components: How many are kept.
        n_resamples: Of the questions.
        n_shuffles: Deals of answers to roles.
        seed: Of both.

    Raises:
        LayerOutOfRangeError: The model has no such layer.
        InvalidArgumentError: Too few roles or questions, or an option out of range.
        ModelMismatchError: A vector of another model.

    Reference:
        The Assistant Axis (arXiv 2601.10387), section 2. The null is Buja and Eyuboglu's permutation version of Horn's
        parallel analysis (Multivariate Behavioral Research 27, 1992), within questions.

    Example:
        >>> import persona_lens as pl
        >>> space = pl.space.find_persona_space(answers, layer=15, vectors={"evil": evil})  # doctest: +SKIP
        >>> [role.name for role in space.rank(0)[:3]]  # doctest: +SKIP
    """
    layer = check_layer(layer, answers.model.n_layers)
    check_resampling(n_resamples, 0.95, seed)
    if n_shuffles < 1:
        raise InvalidArgumentError.of("n_shuffles", "be at least 1", n_shuffles)
    characters = answers.characters
    n_roles, n = characters.means.shape[:2]
    if n < 4:
        raise InvalidArgumentError.of("answers", "answer at least four questions", n)
    if not 1 <= n_components <= n_roles - 2:
        rule = f"be in [1, {n_roles - 2}], as there are {n_roles} roles beside the assistant"
        raise InvalidArgumentError.of("n_components", rule, n_components)
    placed = dict(vectors or {})
    for vector in placed.values():
        if vector.model.fingerprint != answers.model.fingerprint:
            raise ModelMismatchError.of("vectors", f"come from {answers.model.name}", vector.model.name)
    units = [vector.unit(layer).double() for vector in placed.values()]
    found = _Found(
        characters.means[:, :, layer].double(),
        answers.assistant[:, layer].double(),
        torch.stack(units) if units else torch.zeros(0, answers.model.d_model, dtype=torch.float64),
        n_components,
    )
    whole = found.at(torch.ones(n))
    oriented = torch.where(whole.assistant < 0, -1.0, 1.0).double()
    whole = whole.turn(oriented)
    rng = np.random.default_rng((seed, Stream.ROLES, 0))
    samples = [
        found.at(torch.from_numpy(counts), like=whole.components.directions)
        for (block,) in draw_multinomial((n,), n_resamples, rng)
        for counts in block
    ]

    def bound(read: Callable[[_Cosines], Tensor]) -> list[Interval]:
        """Make an interval of each number that is read, in the order of the flattened tensor."""
        estimate = read(whole).flatten().tolist()
        values = torch.stack([read(one).flatten() for one in samples]).numpy()
        return [fisher_interval(Resampled(one, values[:, i], 0.95), n) for i, one in enumerate(estimate)]

    k = n_components
    of_roles = bound(lambda one: one.roles)
    roles_axis = bound(lambda one: one.roles_axis)
    of_vectors, vectors_axis = bound(lambda one: one.vectors), bound(lambda one: one.vectors_axis)
    variances, noise_share = _compare_with_chance(found, whole.components, n_shuffles, seed)
    components = whole.components
    coordinates = ((found.characters.mean(dim=1) - components.center) @ components.directions.T).tolist()
    assistant = (found.assistant.mean(dim=0) - components.center) @ components.directions.T
    return PersonaSpace(
        model=answers.model,
        layer=layer,
        n_questions=n,
        center=components.center.float(),
        components=components.directions.float(),
        variances=variances,
        noise_share=noise_share,
        roles=tuple(
            Placed(name, kind, tuple(coordinates[i]), tuple(of_roles[i * k : (i + 1) * k]), roles_axis[i])
            for i, (name, kind) in enumerate(zip(characters.roles, characters.kinds, strict=True))
        ),
        assistant=Placed(
            "assistant", "assistant", tuple(assistant.tolist()), tuple(bound(lambda one: one.assistant)),
            Interval(1.0, 1.0, 1.0),
        ),
        vectors=tuple(
            Placed(name, "vector", (), tuple(of_vectors[i * k : (i + 1) * k]), vectors_axis[i])
            for i, name in enumerate(placed)
        ),
        n_resamples=n_resamples,
        n_shuffles=n_shuffles,
        seed=seed,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Cosines:
    """What is found of one weighting of the questions; the axis is the assistant less the mean over roles."""

    components: Components
    roles: Float[Tensor, "role component"]
    roles_axis: Float[Tensor, " role"]
    assistant: Float[Tensor, " component"]
    vectors: Float[Tensor, "vector component"]
    vectors_axis: Float[Tensor, " vector"]

    def turn(self, signs: Float[Tensor, " component"]) -> _Cosines:
        """Return the same with some components pointing the other way."""
        kept = self.components
        turned = Components(kept.center, kept.directions * signs[:, None], kept.variances, kept.total)
        return _Cosines(
            turned, self.roles * signs, self.roles_axis, self.assistant * signs, self.vectors * signs, self.vectors_axis
        )


@dataclass(frozen=True, eq=False)
class _Found:
    """Roles' answers at one layer, and what is to be placed among them; all float64."""

    characters: Float[Tensor, "role question d_model"]
    assistant: Float[Tensor, "question d_model"]
    vectors: Float[Tensor, "vector d_model"]
    n_components: int

    def at(self, weights: Tensor, *, like: Float[Tensor, "component d_model"] | None = None) -> _Cosines:
        """Find components and cosines under weights of the questions; ``like`` says in which order and direction."""
        share = (weights / weights.sum()).double()
        means = torch.einsum("rqd,q->rd", self.characters, share)
        n_found = self.n_components if like is None else min(self.n_components + _MORE, len(means) - 1)
        components = find_components(means, n_found)
        if like is not None:
            index, signs = match_components(like @ components.directions.T)
            kept = components.directions[index] * signs[:, None]
            components = Components(components.center, kept, components.variances[index], components.total)
        axis = unit_or_zero(share @ self.assistant - components.center)
        directions = components.directions.T
        return _Cosines(
            components=components,
            roles=components.cosines(means),
            roles_axis=unit_or_zero(means - components.center) @ axis,
            assistant=axis @ directions,
            vectors=self.vectors @ directions,
            vectors_axis=self.vectors @ axis,
        )


def _compare_with_chance(
    found: _Found, whole: Components, n_shuffles: int, seed: int
) -> tuple[tuple[ComponentVariance, ...], float]:
    """Say what each component explains and how alike it is between halves, beside answers dealt out by chance."""
    rng = np.random.default_rng((seed, Stream.ROLES, 1))
    n_roles, n, _ = found.characters.shape
    k = found.n_components
    variances, halves, correlations, totals = [], [], [], []
    for _ in range(n_shuffles):
        dealt = torch.from_numpy(np.stack([rng.permutation(n_roles) for _ in range(n)], axis=1))
        shuffled = found.characters.gather(0, dealt[:, :, None].expand_as(found.characters))
        null = find_components(shuffled.mean(dim=1), k)
        variances.append(null.variances)
        totals.append(null.total)
        cosines, by_role = _compare_halves(shuffled, null)
        halves.append(cosines)
        correlations.append(torch.tensor(by_role, dtype=torch.float64))
    null_variances, null_halves, null_correlations = map(torch.stack, (variances, halves, correlations))
    mean_total = sum(totals) / n_shuffles
    half_cosines, half_correlations = _compare_halves(found.characters, whole)
    return (
        tuple(
            ComponentVariance(
                share=float(whole.shares[i]),
                variance=float(whole.variances[i]),
                null_variance=float(null_variances[:, i].quantile(0.95)),
                null_share=float((null_variances[:, i] / torch.tensor(totals, dtype=torch.float64)).mean()),
                half_cosine=float(half_cosines[i]),
                null_half_cosine=float(null_halves[:, i].quantile(0.95)),
                half_correlation=half_correlations[i],
                null_half_correlation=float(null_correlations[:, i].quantile(0.95)),
            )
            for i in range(k)
        ),
        mean_total / whole.total,
    )


def _compare_halves(
    characters: Float[Tensor, "role question d_model"], whole: Components
) -> tuple[Float[Tensor, " component"], list[float]]:
    """Return how alike each component is in even and in odd questions, and how alike the roles' coordinates are."""
    k = len(whole.directions)
    directions, coordinates = [], []
    for start in (0, 1):
        means = characters[:, start::2].mean(dim=1)
        half = find_components(means, min(k + _MORE, len(means) - 1))
        index, signs = match_components(whole.directions @ half.directions.T)
        directions.append(half.directions[index] * signs[:, None])
        coordinates.append((means - half.center) @ directions[-1].T)
    cosines = (directions[0] * directions[1]).sum(dim=1).abs()
    return cosines, [pearson_r(coordinates[0][:, i], coordinates[1][:, i]) for i in range(k)]
