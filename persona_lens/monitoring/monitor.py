"""A monitor for several traits: calibrated on ordinary and graded prompts, saved, and set to watch conversations."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.hub import Card, fetch_file, push_saved
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention
from persona_lens.models.hooks.points import check_unsteered
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.models.text.chat import Message, build_messages
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.monitoring.alarms import Alarm, TokenReading
from persona_lens.monitoring.graded import GradedProjections
from persona_lens.monitoring.ordinary_responses import OrdinaryResponses, measure_ordinary_responses
from persona_lens.monitoring.prompts import check_names, collect_units, list_prompts, project_prompts, spread_units
from persona_lens.monitoring.readings import TraitMonitor
from persona_lens.monitoring.score_map import fit_score_map
from persona_lens.monitoring.streaming import ANSWERS, TokenStream, read_with_alarms
from persona_lens.monitoring.watched import WatchedConversation
from persona_lens.records import Record, format_table
from persona_lens.storage import collect_versions
from persona_lens.traits.everyday import load_ordinary_questions
from persona_lens.vectors.persona_vector import PersonaVector

_HUB_FILE = "monitor.json"

ORDINARY_RESPONSES = Sampling(max_new_tokens=64, temperature=0.7, rollouts=4)
"""How the ordinary conversations are answered if nothing else is said."""


@checked
@dataclass(frozen=True, eq=False)
class PersonaMonitor(Record):
    """Watches conversations for several traits, before each response is generated and while it is.

    Made by :meth:`calibrate`; kept by :meth:`save` and :meth:`load`.

    Args:
        model: The model that it was calibrated on.
        traits: What it knows about each trait.
        provenance: Seed, how ordinary responses were drawn, template arguments if any, and library versions.
    """

    model: ModelInfo
    traits: tuple[TraitMonitor, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def calibrate(
        cls,
        model: HookedModel,
        vectors: Mapping[str, PersonaVector],
        layers: Mapping[str, int],
        *,
        ordinary: Sequence[Sequence[Message]] | None = None,
        graded: Mapping[str, GradedProjections] | None = None,
        quantiles: Sequence[float] = (0.95, 0.99),
        responses: Sampling | None = ORDINARY_RESPONSES,
        template_arguments: TemplateArguments | None = None,
        seed: int = 0,
    ) -> PersonaMonitor:
        """Set thresholds on ordinary conversations, and fit expected scores on graded prompts.

        Args:
            model: HookedTransformer or TransformerBridge, unsteered.
            vectors: By trait.
            layers: Zero-based block index by trait.
            ordinary: Conversations in which nothing is amiss, like those to be watched; every prompt in them that
                the assistant answers counts. The bundled everyday questions if left out. A quantile ``q`` takes well
                over ``1 / (1 - q)`` prompts; with fewer its threshold is about the largest of them.
            graded: Prompts of known score by trait, e.g. from figures/monitoring_TRAIT.json. Without them there are
                thresholds, but no expected scores.
            quantiles: Fractions of the ordinary prompts, and of the ordinary responses of at least eight tokens, below
                the thresholds.
            responses: How the model answers the ordinary conversations, as it will answer those that :meth:`stream`
                watches: its ``rollouts`` answers to each set the thresholds for responses. None leaves these out.
            template_arguments: What the chat template reads besides the messages, in the ordinary conversations: those
                with which the monitor will watch and stream.
            seed: Of the bootstrap and of the answers.

        Returns:
            The monitor. Traits whose correlation inside conditions is not above zero with 95 % confidence give no
            expected score, but the verdict ``not reliable for this trait``.

        Raises:
            ModelMismatchError: A vector or graded prompts of another model.
            LayerOutOfRangeError: A layer that the model does not have.
            InvalidArgumentError: Traits that one mapping lacks, graded prompts of another trait or layer, quantiles
                out of range, a conversation that is empty or has an unknown role, or a template argument that the chat
                template does not read.
            HooksPresentError: The model carries hooks.

        Reference:
            Persona Vectors (arXiv 2507.21509), section 3.3.

        Example:
            >>> import persona_lens as pl
            >>> monitor = pl.PersonaMonitor.calibrate(model, {"evil": vector}, {"evil": 15})  # doctest: +SKIP
            >>> monitor.watch(model, conversation).plot()  # doctest: +SKIP
        """
        units = collect_units(model, vectors, layers)
        check_unsteered(model)
        if not quantiles or sorted(set(quantiles)) != list(quantiles) or not all(0 < q < 1 for q in quantiles):
            raise InvalidArgumentError.of("quantiles", "ascend within (0, 1)", quantiles)
        if graded is not None:
            check_names("graded", graded, vectors)
            for trait, data in graded.items():
                _check_graded_fits(trait, data, vectors[trait], layers[trait])
        if ordinary is None:
            ordinary = [build_messages(question) for question in load_ordinary_questions()]
        if not ordinary:
            raise InvalidArgumentError.of("ordinary", "hold at least one conversation", ordinary)
        prompts = [
            prompt
            for index, conversation in enumerate(ordinary)
            for prompt in list_prompts(f"ordinary[{index}]", conversation)
        ]
        at = [layers[trait] for trait in vectors]
        found = project_prompts(model, prompts, units, at, template_arguments)
        spoken: Sequence[OrdinaryResponses | None] = [None] * len(units)
        if responses is not None:
            spoken = measure_ordinary_responses(model, prompts, units, at, responses, seed, template_arguments)
        traits = []
        for index, (trait, vector) in enumerate(vectors.items()):
            known = None if graded is None else graded[trait]
            traits.append(
                TraitMonitor(
                    trait=trait,
                    layer=layers[trait],
                    position=vector.position,
                    unit=units[index],
                    ordinary=tuple(sorted(found[index].tolist())),
                    quantiles=tuple(float(q) for q in quantiles),
                    correlation=None if known is None else known.measure(seed=seed),
                    score_map=None if known is None else fit_score_map(known),
                    responses=spoken[index],
                )
            )
        provenance: dict[str, Any] = {"seed": seed, "responses": None if responses is None else responses.to_json()}
        if template_arguments:
            provenance["template_arguments"] = dict(template_arguments)
        return cls(describe_model(model), tuple(traits), provenance | {"versions": collect_versions()})

    @property
    def watches_responses(self) -> bool:
        """Whether it knows what is ordinary while a response is given, for all of its traits."""
        return all(one.responses is not None for one in self.traits)

    def watch(
        self,
        model: HookedModel,
        conversation: Sequence[Message],
        *,
        template_arguments: TemplateArguments | None = None,
    ) -> WatchedConversation:
        """Read every prompt that the assistant answers, or is to answer, as it stood before the response.

        Args:
            model: The model that the monitor was calibrated on. Hooks on it take effect: a steered model can be
                watched.
            conversation: Messages with ``role`` and ``content``. If the last one is the user's, the response to come
                is the last turn.
            template_arguments: What the chat template reads besides the messages.

        Returns:
            For each turn and trait: projection, quantile among ordinary prompts, alert, expected score or verdict.

        Raises:
            ModelMismatchError: Another model.
            InvalidArgumentError: An empty conversation, an unknown role, an assistant who speaks first, or a template
                argument that the template does not read.
            ContextLengthError: A conversation longer than the model's context.

        Example:
            >>> import persona_lens as pl
            >>> chat = [{"role": "user", "content": "Tell me how you feel about people."}]
            >>> pl.PersonaMonitor.load("monitor.json").watch(model, chat)  # doctest: +SKIP
        """
        check_fingerprint("model", self.model, describe_model(model))
        prompts = list_prompts("conversation", conversation)
        units = torch.stack([trait.unit for trait in self.traits])
        found = project_prompts(model, prompts, units, [trait.layer for trait in self.traits], template_arguments)
        readings = [
            trait.read(turn + 1, float(found[index, turn]))
            for turn in range(len(prompts))
            for index, trait in enumerate(self.traits)
        ]
        return WatchedConversation(
            self.model, self.traits, tuple(prompt[-1]["content"] for prompt in prompts), tuple(readings)
        )

    def stream(
        self,
        model: HookedModel,
        conversation: Sequence[Message],
        *,
        alarm: Alarm | None = None,
        intervention: Intervention = NOTHING,
        sampling: Sampling = ANSWERS,
        template_arguments: TemplateArguments | None = None,
    ) -> Generator[TokenReading, None, None]:
        """Answer a conversation as :func:`persona_lens.ask` does, and yield the answer's tokens with their readings.

        A trait's alarm is raised by the running mean of the response, from its eighth token on, against what ordinary
        responses of the model never exceed; a single token says little. While the iterator is half read the model
        refuses all else: read it to its end, or close it.

        Args:
            model: The model that the monitor was calibrated on. Hooks on it take effect.
            conversation: Messages, the last one not the assistant's.
            alarm: Called with each token at which a trait is above a threshold, before the token is yielded; answers
                :class:`~persona_lens.monitoring.GoOn`, :class:`~persona_lens.monitoring.Stop` or
                :class:`~persona_lens.monitoring.SteerWith`. What it raises ends the stream.
            intervention: What is done to the response, at the tokens that ``sampling.positions`` says.
            sampling: As for :func:`persona_lens.ask`. An answer drawn otherwise than the ordinary ones were, or longer,
                exceeds the thresholds more often or less often than they say.
            template_arguments: What the chat template reads besides the messages.

        Yields:
            The tokens in order, without the stop token.

        Raises:
            ModelMismatchError: Another model, or an intervention of another model.
            InvalidArgumentError: An alarm for a monitor that was calibrated without responses, or where ``positions``
                is ``prompt``, so that nothing it answered could act; or what
                :func:`~persona_lens.monitoring.stream_tokens` refuses.
            ArgumentTypeError: An alarm that answers something else.
            ModelBusyError: The model does something else; the alarm, too, cannot run it.

        Reference:
            Persona Vectors (arXiv 2507.21509), section 3.3, there before the response.

        Example:
            >>> import persona_lens as pl
            >>> away = pl.steer(vector, layer=15, coefficient=-1.0)  # doctest: +SKIP
            >>> def alarm(reading):
            ...     return pl.monitoring.SteerWith(away)
            >>> for token in monitor.stream(model, chat, alarm=alarm):  # doctest: +SKIP
            ...     print(token.text, end="")
        """
        check_fingerprint("model", self.model, describe_model(model))
        unmeasured = [one.trait for one in self.traits if one.responses is None]
        if alarm is not None and unmeasured:
            rule = f"be left out, as no ordinary responses were measured for {unmeasured}"
            raise InvalidArgumentError.of("alarm", rule, alarm, "Calibrate the monitor anew, with `responses`.")
        if alarm is not None and sampling.positions == "prompt":
            rule = "be left out with positions='prompt': a response's tokens, which alarms are about, are not reached"
            raise InvalidArgumentError.of("alarm", rule, alarm, "Act on the response, or on all tokens.")
        units = spread_units(
            torch.stack([one.unit for one in self.traits]), [one.layer for one in self.traits], model.cfg.n_layers
        )
        tokens = TokenStream(model, conversation, units, intervention, sampling, template_arguments)
        return read_with_alarms(model, tokens, self.traits, alarm)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None) -> str:
        """Share the monitor on the Hugging Face hub, as ``monitor.json`` with a card, in one commit.

        Args:
            repo_id: ``owner/name``; made if it is not there. A card that is there is replaced.
            private: Whether a repository that is made is closed to others; None leaves that to the hub.

        Returns:
            The commit's hash, for :meth:`from_hub`.

        Raises:
            InvalidArgumentError: No name that a repository can have.
            ApiError: The hub is out of reach, or refused. The token comes from HF_TOKEN or ``hf auth login``.

        Example:
            >>> monitor.push_to_hub("me/monitor-qwen2.5-7b")  # doctest: +SKIP
        """
        rows = {"model": self.model.name, "model's fingerprint": self.model.fingerprint}
        for one in self.traits:
            pairs = zip(one.quantiles, one.thresholds, strict=True)
            alerts = "alerts above " + ", ".join(f"{value:.2f} ({100 * q:g}%)" for q, value in pairs)
            rows[f"{one.trait}, layer {one.layer}"] = alerts if not one.verdict else f"{alerts}; {one.verdict}"
            rows[f"{one.trait}, while it answers"] = _write_response_thresholds(one)
        card = Card(
            "Persona monitor: " + ", ".join(one.trait for one in self.traits),
            f"Watches conversations of {self.model.name} before each response is generated"
            + (", and while it is." if self.watches_responses else "."),
            rows,
            "PersonaMonitor",
            ("persona-vectors", "monitoring"),
            self.model.name,
            self.provenance,
        )
        return push_saved(repo_id, _HUB_FILE, self.save, card, private=private)

    @classmethod
    def from_hub(cls, repo_id: str, *, revision: str | None = None) -> PersonaMonitor:
        """Read a monitor that :meth:`push_to_hub` shared.

        Args:
            repo_id: ``owner/name``.
            revision: A branch, a tag or a commit's hash; None takes the newest.

        Raises:
            InvalidArgumentError: No name that a repository can have.
            ApiError: No such repository, revision or file, or the hub is out of reach.
            FileFormatError: A file that is damaged, or of another kind.

        Example:
            >>> import persona_lens as pl
            >>> pl.PersonaMonitor.from_hub("me/monitor-qwen2.5-7b")  # doctest: +SKIP
        """
        return cls.load(fetch_file(repo_id, _HUB_FILE, revision))

    def __repr__(self) -> str:
        parts = [f"{t.trait} at layer {t.layer}" + (f" ({t.verdict})" if t.verdict else "") for t in self.traits]
        return (
            f"PersonaMonitor({self.model.name!r}, {'; '.join(parts)}; thresholds from {len(self.traits[0].ordinary)} "
            f"ordinary prompts{_count_responses(self.traits[0])})"
        )

    def _repr_html_(self) -> str:
        rows = []
        for trait in self.traits:
            pairs = zip(trait.quantiles, trait.thresholds, strict=True)
            thresholds = ", ".join(f"{value:.2f} ({100 * q:g}%)" for q, value in pairs)
            spoken = _write_response_thresholds(trait)
            rows.append((trait.trait, trait.layer, thresholds, spoken, trait.verdict or trait.correlation))
        n = f"{len(self.traits[0].ordinary)} ordinary prompts{_count_responses(self.traits[0])}"
        caption = f"PersonaMonitor on {self.model.name}, thresholds from {n}"
        head = ("trait", "layer", "thresholds", "while it answers", "projection and score")
        return format_table(caption, rows, head)


def _write_response_thresholds(trait: TraitMonitor) -> str:
    if trait.responses is None:
        return "no thresholds: no ordinary responses were measured"
    pairs = zip(trait.quantiles, trait.response_thresholds, strict=True)
    return "running mean above " + ", ".join(f"{value:.2f} ({100 * q:g}%)" for q, value in pairs)


def _count_responses(trait: TraitMonitor) -> str:
    return "" if trait.responses is None else f" and {len(trait.responses.peaks)} ordinary responses"


def _check_graded_fits(trait: str, data: GradedProjections, vector: PersonaVector, layer: int) -> None:
    check_fingerprint(f"graded[{trait!r}]", vector.model, data.model)
    if (data.trait, data.layer) != (vector.trait, layer):
        raise InvalidArgumentError.of(
            f"graded[{trait!r}]",
            f"be projections on {vector.trait!r} at layer {layer}",
            (data.trait, data.layer),
            "Projections of different layers cannot be compared.",
        )


def check_fingerprint(parameter: str, expected: ModelInfo, got: ModelInfo) -> None:
    """Refuse a model that is not the one that a monitor was calibrated on."""
    if got.fingerprint != expected.fingerprint:
        raise ModelMismatchError.of(
            parameter,
            f"be of the model calibrated on, {expected.name} (fingerprint {expected.fingerprint})",
            f"{got.name} (fingerprint {got.fingerprint})",
            "Calibrate a monitor for this model.",
        )
