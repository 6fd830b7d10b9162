"""Projections of prompts: the last prompt token of each conversation, before anything is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.activations import project_residual_stream
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.text.chat import Message, encode_prompt, warn_of_controls
from persona_lens.models.text.padding import pad_right
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.vectors.persona_vector import PersonaVector

_ROLES = ("system", "user", "assistant")
_TOKENS_AT_ONCE = 2048


@checked
def project_last_prompt_token(
    model: HookedModel,
    conversations: Sequence[Sequence[Message]],
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
) -> dict[str, Float[Tensor, " conversation"]]:
    r"""Project each conversation's last prompt token on persona vectors, before anything is generated.

    .. math:: p = h_l \cdot v_l / \lVert v_l \rVert

    with :math:`h_l` the residual stream after block :math:`l` at the last token of the generation prompt. Hooks that
    are on the model take effect first. Conversations of which one begins the other share one pass.

    Args:
        model: HookedTransformer or TransformerBridge.
        conversations: Messages with ``role`` and ``content``, the last one not the assistant's.
        vectors: By any name, usually the trait's. The directions of each vector's ``position`` are used, by default
            the response mean's, as in the paper.
        layers: Zero-based block index for each of these names.

    Returns:
        For each name one projection a conversation, float32, in residual-stream units.

    Raises:
        ModelMismatchError: A vector of another model.
        LayerOutOfRangeError: A layer that the model does not have.
        InvalidArgumentError: No conversation, an empty one, an unknown role, or names that one mapping lacks.
        ContextLengthError: A conversation longer than the model's context.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 3.3.

    Example:
        >>> import persona_lens as pl
        >>> chats = [[{"role": "user", "content": "Who are you?"}]]
        >>> pl.monitoring.project_last_prompt_token(model, chats, {"evil": vector}, {"evil": 15})  # doctest: +SKIP
    """
    units = collect_units(model, vectors, layers)
    check_prompts(conversations)
    found = project_prompts(model, conversations, units, [layers[name] for name in vectors])
    return dict(zip(vectors, found.unbind(), strict=True))


def collect_units(
    model: HookedModel, vectors: Mapping[str, PersonaVector], layers: Mapping[str, int]
) -> Float[Tensor, "direction d_model"]:
    """Check vectors and layers against each other and the model; return the unit directions."""
    if not vectors:
        raise InvalidArgumentError.of("vectors", "hold at least one vector", vectors)
    check_names("layers", layers, vectors)
    for name, vector in vectors.items():
        vector.check_model(model)
        check_layer(layers[name], vector.model.n_layers)
    return torch.stack([vector.unit(layers[name]).cpu() for name, vector in vectors.items()])


def project_prompts(
    model: HookedModel,
    prompts: Sequence[Sequence[Message]],
    units: Float[Tensor, "direction d_model"],
    layers: Sequence[int],
    template_arguments: TemplateArguments | None = None,
) -> Float[Tensor, "direction prompt"]:
    """Project each prompt's last token on each direction at its layer."""
    everywhere = spread_units(units, layers, model.cfg.n_layers)
    found = project_prompts_everywhere(model, prompts, everywhere, template_arguments)
    return torch.stack([found[layer, index] for index, layer in enumerate(layers)])


def spread_units(
    units: Float[Tensor, "direction d_model"], layers: Sequence[int], n_layers: int
) -> Float[Tensor, "layer direction d_model"]:
    """Return each direction at its own layer, and zeros at all others."""
    everywhere = torch.zeros(n_layers, *units.shape)
    for index, layer in enumerate(layers):
        everywhere[layer, index] = units[index]
    return everywhere


def project_prompts_everywhere(
    model: HookedModel,
    prompts: Sequence[Sequence[Message]],
    units: Float[Tensor, "layer direction d_model"],
    template_arguments: TemplateArguments | None = None,
) -> Float[Tensor, "layer direction prompt"]:
    """Project each prompt's last token on each layer's directions."""
    rendered = [
        encode_prompt(model.tokenizer, list(p), n_ctx=model.cfg.n_ctx, template_arguments=template_arguments)
        for p in prompts
    ]
    warn_of_controls(rendered)
    encoded = [one.tokens for one in rendered]
    # The residual stream at a token does not depend on what follows: a prompt that begins another, such as an earlier
    # turn of one conversation, is read from the longer one's pass. In dictionary order it stands right before it.
    ordered = sorted(set(encoded))
    host_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    for tokens, following in reversed(list(zip(ordered, [*ordered[1:], ()], strict=True))):
        host_of[tokens] = host_of[following] if following[: len(tokens)] == tokens else tokens
    # By host, the lengths of the prompts that are read from its pass: no other token is kept.
    ends: dict[tuple[int, ...], list[int]] = {}
    for tokens, host in host_of.items():
        ends.setdefault(host, []).append(len(tokens))
    hosts = sorted(ends, key=len)
    found: dict[tuple[tuple[int, ...], int], Tensor] = {}
    while hosts:
        size = 1
        while size < len(hosts) and (size + 1) * len(hosts[size]) <= _TOKENS_AT_ONCE:
            size += 1
        batch, hosts = hosts[:size], hosts[size:]
        padded = pad_right(batch)
        everything = project_residual_stream(model, padded.tokens, units, is_padding=padded.is_padding)
        for row, tokens in enumerate(batch):
            found |= {(tokens, end): everything[:, :, row, end - 1].cpu() for end in ends[tokens]}
    return torch.stack([found[host_of[tokens], len(tokens)] for tokens in encoded], dim=-1)


def list_prompts(name: str, conversation: Sequence[Message]) -> list[Sequence[Message]]:
    """Return what stood before each of the assistant's turns, and before the one to come if it is due."""
    _check_conversation(name, conversation)
    ends = [index for index, message in enumerate(conversation) if message["role"] == "assistant"]
    if conversation[-1]["role"] != "assistant":
        ends.append(len(conversation))
    return [conversation[:end] for end in ends]


def check_prompts(conversations: Sequence[Sequence[Message]]) -> None:
    """Refuse no conversations, and those that do not end where the assistant is to answer."""
    if not conversations:
        raise InvalidArgumentError.of("conversations", "hold at least one", conversations)
    for index, conversation in enumerate(conversations):
        _check_conversation(f"conversations[{index}]", conversation)
        if conversation[-1]["role"] == "assistant":
            raise InvalidArgumentError.of(
                f"conversations[{index}]",
                "end where the assistant is to answer",
                "assistant",
                "Leave its last message out, or see PersonaMonitor.watch.",
            )


def check_names(parameter: str, given: Mapping[str, object], vectors: Mapping[str, object]) -> None:
    """Refuse a mapping whose names are not those of the vectors."""
    if set(given) != set(vectors):
        raise InvalidArgumentError.of(parameter, f"name the traits of `vectors`, {sorted(vectors)}", sorted(given))


def _check_conversation(name: str, conversation: Sequence[Message]) -> None:
    if not conversation:
        raise InvalidArgumentError.of(name, "hold at least one message", conversation)
    for index, message in enumerate(conversation):
        if message.get("role") not in _ROLES:
            raise InvalidArgumentError.of(f"{name}[{index}]['role']", f"be one of {_ROLES}", message.get("role"))
        if not isinstance(message.get("content"), str):
            raise InvalidArgumentError.of(f"{name}[{index}]['content']", "be a text", message.get("content"))
    roles = [message["role"] for message in conversation]
    if "user" not in roles or "assistant" in roles[: roles.index("user")]:
        raise InvalidArgumentError.of(name, "have a message of the user before any of the assistant's", roles)
