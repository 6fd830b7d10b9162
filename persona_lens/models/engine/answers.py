"""One question, one answer, whatever hooks the model carries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Protocol, runtime_checkable

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.engine.requests import Sampling, decode_part
from persona_lens.models.engine.rollouts import warn_of_unfinished
from persona_lens.models.engine.stepwise import GrowingAnswer, generate_one_by_one
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.chat import Message, build_messages, encode_prompt, warn_of_controls
from persona_lens.models.text.templates import TemplateArguments


@runtime_checkable
class TextStream(Protocol):
    """What text is written to as it comes, such as ``sys.stdout``."""

    def write(self, text: str, /) -> object:
        """Take a piece of text."""
        ...

    def flush(self) -> object:
        """Show what was written."""
        ...


@checked
def ask(
    model: HookedModel,
    question: str | Sequence[Message],
    *,
    system: str | None = None,
    sampling: Sampling = Sampling(max_new_tokens=128, temperature=0.7),
    stream: TextStream | None = None,
    template_arguments: TemplateArguments | None = None,
) -> str:
    """Ask a chat model something, through its chat template, and return what it answers.

    Runs TransformerLens' own generation, so that every hook on the model takes effect: inside
    ``with pl.steering(...)``, ``pl.hooked(...)`` or ``model.hooks(...)`` the answer is a steered one. To ask many
    questions at once take :func:`persona_lens.score_conditions` or ``pl.models.sample_rollouts``, which fill batches.

    Args:
        model: HookedTransformer or TransformerBridge with a tokenizer that has a chat template.
        question: The user's turn; or a whole conversation, ending with one.
        system: System prompt of a question; None leaves it to the chat template.
        sampling: Length, temperature, ``top_p``, seed, stop tokens, and ``judged``: which part of the response of a
            model that thinks is returned. Its other values are for batches.
        stream: Where each piece of the response is written as it comes, thought and all, such as ``sys.stdout``.
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``;
            they go before those that the model was loaded with.

    Returns:
        The answer, without the stop token; the same seed gives the same one. Empty where a thought does not end.

    Raises:
        ChatTemplateError: The tokenizer has no usable chat template.
        InvalidArgumentError: An empty question; a conversation with an unknown role, or that ends with the
            assistant's turn; a template argument that the template does not read.
        ContextLengthError: A conversation that leaves no room for the answer.
        NonFiniteError: Logits that overflow, as under too strong a steering.
        ModelBusyError: The model does something else.

    Warns:
        UnfinishedThoughtWarning: The response is a thought that does not end.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> with pl.steering(model, pl.load_vector("empathy"), layer=24, coefficient=1.5):  # doctest: +SKIP
        ...     print(pl.ask(model, "I failed my exam."))
    """
    if isinstance(question, str) and not question.strip():
        hint = 'To say nothing on purpose: [{"role": "user", "content": ""}].'
        raise InvalidArgumentError.of("question", "hold a text", question, hint)
    messages = build_messages(question, system) if isinstance(question, str) else question
    tokenizer = model.tokenizer
    prompt = encode_prompt(
        tokenizer, messages, n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens, template_arguments=template_arguments
    )
    warn_of_controls([prompt])
    answer = GrowingAnswer(tokenizer, prompt.tokens, sampling)
    with closing(generate_one_by_one(model, prompt.tokens, sampling, sampling.max_tokens)) as tokens:
        for token in tokens:
            if token in answer.stops:
                break
            answer.add(token)
            if stream is not None:
                stream.write(answer.grow())
                stream.flush()
            if answer.is_full:
                break
    if stream is not None:
        stream.write(answer.finish() + "\n")
    warn_of_unfinished([answer.response], sampling.max_tokens)
    return decode_part(tokenizer, answer.response, sampling.judged)
