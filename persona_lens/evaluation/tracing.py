"""What an intervention did: each token's projection with and without it, and which tokens it reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.interventions.hooks import intervention_hooks
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import Intervention, check_interventions
from persona_lens.models.hooks.points import HookPair, attached
from persona_lens.models.hooks.positions import PositionedHook, Positions
from persona_lens.models.hooks.sites import resolve_layers
from persona_lens.models.text.chat import Message, encode_conversation, warn_of_controls
from persona_lens.records import Record
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from persona_lens.plots.tokens import ColouredTokens


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Trace(Record):
    """A conversation's tokens with their projections on a persona vector, with and without some hooks.

    Args:
        trait: The vector's trait.
        tokens: Each token's text.
        before: Projection without the hooks, in residual-stream units.
        after: Projection with them; equal to ``before`` if there are none.
        steered: Tokens that one of this package's hooks was placed on, at each layer.
        read: Tokens that the response mean is taken over.
    """

    trait: str
    tokens: tuple[str, ...]
    before: Float[Tensor, "layer pos"]
    after: Float[Tensor, "layer pos"]
    steered: Bool[Tensor, "layer pos"]
    read: Bool[Tensor, " pos"]

    @property
    def response_mean(self) -> Float[Tensor, "layer 2"]:
        """Mean projection over the response's tokens at each layer, before and after."""
        return torch.stack([self.before[:, self.read].mean(dim=-1), self.after[:, self.read].mean(dim=-1)], dim=-1)

    def plot(self, layer: int | None = None, *, layers: Sequence[int] | str | None = None) -> ColouredTokens:
        """Colour the text by projection: one layer, or one row for each of several.

        Args:
            layer: Zero-based block index; if neither is given, the layer with the largest difference made, or the
                middle one if there is none.
            layers: Instead of ``layer``: several, or ``"all"``.

        Returns:
            An object that shows itself in Jupyter; ``.write_html(path)`` writes it to a file.

        Raises:
            LayerOutOfRangeError: A layer that the model does not have.
            InvalidArgumentError: Both ``layer`` and ``layers``, or an empty list.
        """
        from persona_lens.plots.tokens import plot_trace  # plotly is imported only when drawing

        if layer is not None and layers is not None:
            raise InvalidArgumentError.of("layers", "be left out where `layer` is given", layers)
        n_layers = len(self.before)
        if layer is None and layers is None:
            change = (self.after - self.before).abs().mean(dim=-1)
            layer = int(change.argmax()) if bool(change.any()) else n_layers // 2
        chosen = layer if layers is None else layers
        assert chosen is not None
        return plot_trace(self, resolve_layers(chosen, n_layers))

    def __repr__(self) -> str:
        n_steered = int(self.steered.any(dim=0).sum())
        return (
            f"Trace({self.trait!r}, {len(self.tokens)} tokens, {int(self.read.sum())} of them read as the response, "
            f"{n_steered} steered, {len(self.before)} layers)"
        )

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


@checked
def trace(
    model: HookedModel,
    conversation: Sequence[Message],
    vector: PersonaVector,
    hooks: Intervention | Sequence[HookPair] = (),
    *,
    positions: Positions = "all",
) -> Trace:
    """Run a conversation with and without hooks, and project every token on a vector at every layer.

    Answers: did it steer the tokens that I think it did?

    Args:
        model: HookedTransformer or TransformerBridge.
        conversation: Messages with ``role`` and ``content``, the last one the assistant's.
        vector: Projected on.
        hooks: An intervention; or what :func:`persona_lens.steering_hooks` and its like return, with a user's own among
            them. Hooks placed on ``"response"`` or ``"prompt"`` need their ``prompt_length``: what
            ``encode_conversation(model.tokenizer, conversation).response_start`` says.
        positions: Where an intervention acts; hooks know that themselves.

    Returns:
        Projections before and after, and which tokens were steered and read.

    Raises:
        ModelMismatchError: A vector of another model.
        InvalidArgumentError: A conversation that does not end with a response.
        ContextLengthError: Longer than the model's context.

    Example:
        >>> import persona_lens as pl
        >>> chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
        >>> pl.trace(model, chat, vector, pl.steer(vector, layer=14), positions="response").plot()  # doctest: +SKIP
    """
    vector.check_model(model)
    if not conversation or conversation[-1]["role"] != "assistant":
        got = [message["role"] for message in conversation]
        raise InvalidArgumentError.of("conversation", "end with a message of the assistant", got)
    encoded = encode_conversation(model.tokenizer, list(conversation), n_ctx=model.cfg.n_ctx)
    warn_of_controls([encoded])
    if isinstance(hooks, Intervention):
        check_interventions(model, [hooks])
        prompt_length = None if positions == "all" and not hooks.has_windows else encoded.response_start
        hooks = intervention_hooks(hooks, positions=positions, prompt_length=prompt_length)
    tokens = torch.tensor([encoded.tokens])
    units = vector.units[:, None]
    before = project_residual_stream(model, tokens, units)[:, 0, 0]
    reached = torch.zeros(before.shape, dtype=torch.bool)
    after = before
    if hooks:
        with attached(model, hooks):
            after = project_residual_stream(model, tokens, units)[:, 0, 0]
        for _, fn in hooks:
            if isinstance(fn, PositionedHook):
                # The pass above has just told the positions where it lies.
                reached[fn.site.layer] |= fn.reach(1, tokens.shape[1], torch.device("cpu"))[0]
    read = torch.zeros(tokens.shape[1], dtype=torch.bool)
    read[encoded.response_start : encoded.response_end] = True
    texts = tuple(model.tokenizer.decode([token]) for token in encoded.tokens)
    return Trace(vector.trait, texts, before.cpu(), after.cpu(), reached, read)
