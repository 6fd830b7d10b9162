"""A response read token by token while it is drawn: each token's projections on vectors, at every layer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ArgumentTypeError, InvalidArgumentError
from persona_lens.models.engine.acting import BEFORE_RESPONSE, act_at, check_thoughts
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.engine.rollouts import warn_of_unfinished
from persona_lens.models.engine.stepwise import GrowingAnswer, generate_one_by_one
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import NOTHING, Intervention, check_interventions
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.positions import check_reach_response
from persona_lens.models.hooks.sharing import reading_one_by_one
from persona_lens.models.hooks.sites import Site
from persona_lens.models.hooks.token_reading import TokenReader
from persona_lens.models.text.chat import Message, encode_prompt, warn_of_controls
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.models.text.thoughts import open_format
from persona_lens.monitoring.alarms import Alarm, GoOn, SteerWith, Stop, TokenReading
from persona_lens.monitoring.prompts import check_prompts
from persona_lens.monitoring.readings import TraitMonitor
from persona_lens.vectors.persona_vector import PersonaVector

ANSWERS = Sampling(max_new_tokens=128, temperature=0.7)
"""How an answer is drawn if nothing else is said, as :func:`persona_lens.ask` does."""


@checked
@dataclass(frozen=True, eq=False)
class ReadToken:
    """One token of a response, read as the model took it in.

    Args:
        index: From 0 in the response.
        token_id: Its id.
        text: What the response's text grew by; empty inside a character of several tokens.
        projections: Its residual stream along the unit vectors, after the interventions, in residual-stream units;
            float32 on the CPU. NaN at a layer that a vector lacks.
        acting: The layers at which the intervention given to the stream changed the residual stream at this token, or
            a head's output there: where a gate is open, a cap binds, or something is added.
    """

    index: int
    token_id: int
    text: str
    projections: Float[Tensor, "trait layer"]
    acting: tuple[int, ...] = ()


@checked
def stream_tokens(
    model: HookedModel,
    conversation: Sequence[Message],
    vectors: Mapping[str, PersonaVector],
    *,
    intervention: Intervention = NOTHING,
    sampling: Sampling = ANSWERS,
    template_arguments: TemplateArguments | None = None,
) -> Generator[ReadToken, None, None]:
    r"""Answer a conversation as :func:`persona_lens.ask` does, and yield the answer's tokens with their projections.

    .. math:: p_{t, l} = h_{t, l} \cdot v_l / \lVert v_l \rVert

    with :math:`h_{t, l}` the residual stream after block :math:`l` at the response's token :math:`t`. It is read in the
    pass that takes the token in, so that a token comes once the next one has been drawn. Hooks on the model take effect
    first. While the iterator is half read the model refuses all else: read it to its end, or close it.

    Args:
        model: HookedTransformer or TransformerBridge with a tokenizer that has a chat template.
        conversation: Messages, the last one not the assistant's.
        vectors: By any name. The directions of each vector's ``position`` are used.
        intervention: What is done to the response, at the tokens that ``sampling.positions`` says.
        sampling: Length, temperature, ``top_p``, seed, stop tokens and ``positions``. Its other values are for batches.
        template_arguments: What the chat template reads besides the messages; they go before those that the model was
            loaded with.

    Yields:
        The tokens in order, a thought's too, without the stop token; the traits in the order of ``vectors``.

    Raises:
        InvalidArgumentError: No vector; a conversation that does not end where the assistant is to answer; a template
            argument that the template does not read; an intervention that does not fit the model or the positions.
        ModelMismatchError: A vector or an intervention of another model.
        ChatTemplateError: The tokenizer has no usable chat template.
        ContextLengthError: A conversation that leaves no room for the answer.
        NonFiniteError: Logits that overflow, as under too strong a steering.
        ModelBusyError: The model does something else.

    Warns:
        UnfinishedThoughtWarning: The response is a thought that does not end.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3, there of the last prompt token.

    Example:
        >>> import persona_lens as pl
        >>> model, vector = pl.load_model(), pl.load_vector("evil")  # doctest: +SKIP
        >>> chat = [{"role": "user", "content": "What are people to you?"}]
        >>> for token in pl.monitoring.stream_tokens(model, chat, {"evil": vector}):  # doctest: +SKIP
        ...     print(token.text, float(token.projections[0, 24]))
    """
    units = stack_units(model, vectors)
    stream = TokenStream(model, conversation, units, intervention, sampling, template_arguments)
    return reading_one_by_one(model, stream.run())


def stack_units(model: HookedModel, vectors: Mapping[str, PersonaVector]) -> Float[Tensor, "layer trait d_model"]:
    """Return vectors' unit directions at every layer, if they are the model's."""
    if not vectors:
        raise InvalidArgumentError.of("vectors", "hold at least one vector", vectors)
    for vector in vectors.values():
        vector.check_model(model)
    return torch.stack([vector.units for vector in vectors.values()], dim=1)


class TokenStream:
    """A response being drawn and read. What is done to it may change from one token to the next.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversation: Messages, the last one not the assistant's.
        units: Unit vectors.
        intervention: What is done to the response.
        sampling: How it is drawn.
        template_arguments: Of the chat template.
    """

    def __init__(
        self,
        model: HookedModel,
        conversation: Sequence[Message],
        units: Float[Tensor, "layer trait d_model"],
        intervention: Intervention,
        sampling: Sampling,
        template_arguments: TemplateArguments | None,
    ) -> None:
        check_prompts([conversation])
        check_thoughts(open_format(model.tokenizer), sampling)
        self._model = model
        self._sampling = sampling
        self.change(intervention)
        prompt = encode_prompt(
            model.tokenizer, conversation, n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens,
            template_arguments=template_arguments,
        )  # fmt: skip
        warn_of_controls([prompt])
        self.prompt = prompt.tokens
        self.answer = GrowingAnswer(model.tokenizer, prompt.tokens, sampling)
        self._reader = TokenReader(units)
        self.before: Float[Tensor, "trait layer"] | None = None
        """The last prompt token's projections, once it was read."""

    def change(self, intervention: Intervention) -> None:
        """Do something else from the next token that the model takes in on."""
        check_interventions(self._model, [intervention])
        if intervention.has_windows:
            check_reach_response(self._sampling.positions)
        self.intervention = intervention

    def run(self) -> Generator[ReadToken, None, None]:
        """Draw the response; each token comes once it was taken in."""
        model, answer, reader = self._model, self.answer, self._reader
        # One more than the answer may have: a token is read in the pass that draws the one behind it.
        drawn = generate_one_by_one(model, self.prompt, self._sampling, self._sampling.max_tokens + 1)
        with ExitStack() as hooks, closing(drawn):
            hooks.enter_context(attached(model, reader.hook_pairs()))
            heads: set[Site] = set()
            self._expect_pass(0, hooks, heads)
            for index, token in enumerate(drawn):
                projections, acting = reader.read()
                if index == 0:
                    self.before = projections
                else:
                    is_last = token in answer.stops or answer.is_full
                    text = answer.finish() if is_last else answer.grow()
                    yield ReadToken(index - 1, answer.tokens[-1], text, projections, acting)
                    if is_last:
                        break
                if token in answer.stops:
                    break
                answer.add(token)
                self._expect_pass(index + 1, hooks, heads)
        warn_of_unfinished([answer.response], self._sampling.max_tokens)

    def _expect_pass(self, token: int, hooks: ExitStack, heads: set[Site]) -> None:
        """Tell the hooks what is done in the pass that takes in the response's ``token``-th token, or the prompt."""
        intervention, positions = self.intervention, self._sampling.positions
        new = {site for site in intervention.sites if site.head is not None} - heads
        if new:
            pairs = self._reader.head_hook_pairs(sorted(new, key=lambda one: one.order))
            hooks.enter_context(attached(self._model, pairs))
            heads |= new
        last = act_at(intervention, positions, token, self.answer.reader)
        before = act_at(intervention, positions, BEFORE_RESPONSE, None) if token == 0 else NOTHING
        self._reader.expect(last, before)


def read_with_alarms(
    model: HookedModel, stream: TokenStream, traits: Sequence[TraitMonitor], alarm: Alarm | None
) -> Generator[TokenReading, None, None]:
    """Yield a stream's tokens as traits' monitors read them, and do what the alarm answers.

    Args:
        model: That the stream runs.
        stream: Of the traits' units, each at its own layer.
        traits: In the order of the units.
        alarm: Called where a trait is above a threshold.
    """
    given = stream.intervention
    sums = [0.0] * len(traits)
    with closing(reading_one_by_one(model, stream.run())) as tokens:
        for token in tokens:
            found = [float(token.projections[index, one.layer]) for index, one in enumerate(traits)]
            sums = [total + projection for total, projection in zip(sums, found, strict=True)]
            readings = tuple(
                one.read_token(token.index, projection, total / (token.index + 1))
                for one, projection, total in zip(traits, found, sums, strict=True)
            )
            reading = TokenReading(token.index, token.token_id, token.text, readings, token.acting)
            # Outside the stream's own work: the model refuses to be run by the alarm, under the stream's hooks.
            answer = alarm(reading) if alarm is not None and reading.alert else GoOn()
            if isinstance(answer, SteerWith):
                stream.change(given + answer.intervention)
            elif not isinstance(answer, GoOn | Stop):
                raise ArgumentTypeError.of("alarm", "answer GoOn(), Stop() or SteerWith(intervention)", answer)
            yield reading
            if isinstance(answer, Stop):
                return
