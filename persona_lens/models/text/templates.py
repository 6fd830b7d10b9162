"""Chat templates: what they take besides the messages, what a model was loaded with, and the one place that renders."""

from __future__ import annotations

import datetime
import functools
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import jinja2
from jinja2 import meta, nodes, sandbox

from persona_lens.checking import checked
from persona_lens.errors import ChatTemplateError, DatedTemplateWarning, InvalidArgumentError

TemplateArguments: TypeAlias = Mapping[str, Any]
"""What a chat template reads besides the messages, by the template's own names, as JSON-able values."""

_SETTINGS = "persona_lens_chat"
_TODAY = "strftime_now"
# What the renderer gives a template itself.
_OWN = frozenset({"messages", "add_generation_prompt", "raise_exception", "bos_token", "eos_token", "pad_token"})
_GENERATION_TAG = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")


@dataclass(frozen=True)
class ChatSettings:
    """What a model was loaded with, beside its tokenizer and template.

    Args:
        arguments: Template arguments of every prompt, as JSON with sorted keys; empty for none.
        stop_tokens: Ids that end a response by the model's generation configuration.
    """

    arguments: str = ""
    stop_tokens: frozenset[int] = frozenset()


def remember_settings(tokenizer: Any, settings: ChatSettings) -> None:
    """Note in a model's tokenizer what the model was loaded with."""
    tokenizer.__dict__[_SETTINGS] = settings


def read_settings(tokenizer: Any) -> ChatSettings:
    """Return what a tokenizer's model was loaded with."""
    found: ChatSettings = getattr(tokenizer, "__dict__", {}).get(_SETTINGS, ChatSettings())
    return found


def freeze_arguments(tokenizer: Any, arguments: TemplateArguments | None) -> str:
    """Check template arguments and return them as JSON with sorted keys, which can be hashed and recorded.

    Args:
        tokenizer: Of the model.
        arguments: By name; ``strftime_now``, today for templates that write it, as a date such as ``"2026-01-31"``.

    Raises:
        InvalidArgumentError: One that the template does not read, or whose value is not JSON.
    """
    if not arguments:
        return ""
    known = list_template_variables(tokenizer)
    for name, value in arguments.items():
        if name not in known:
            rule = f"be read by the chat template, which takes {', '.join(sorted(known)) or 'none'}"
            raise InvalidArgumentError.of(f"template_arguments[{name!r}]", rule, value)
        if name == _TODAY:
            _read_date(value)
    return write_arguments(arguments)


def write_arguments(arguments: TemplateArguments | None) -> str:
    """Return template arguments as JSON with sorted keys; empty for none. Whether a template reads them is not asked.

    Raises:
        InvalidArgumentError: A value that is not JSON.
    """
    if not arguments:
        return ""
    try:
        return json.dumps(dict(arguments), sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        rule = "hold values that JSON has: texts, numbers, true, false, null, lists and objects of them"
        raise InvalidArgumentError.of("template_arguments", rule, dict(arguments), str(error)[:200]) from None


def pin_today(tokenizer: Any, arguments: str) -> str:
    """Return template arguments with today's date added, where prompts would change with the day.

    Args:
        tokenizer: Of the model.
        arguments: As :func:`freeze_arguments` returns them.

    Warns:
        DatedTemplateWarning: The date was added.
    """
    template = getattr(tokenizer, "chat_template", None)
    given = json.loads(arguments or "{}")
    if not template or _TODAY in given or _TODAY not in str(template):
        return arguments
    try:
        if _TODAY not in list_template_variables(tokenizer):  # as where a comment names it
            return arguments
    except ChatTemplateError:  # which is said when a prompt is written
        return arguments
    days = ("2001-02-03", "2002-03-04")
    renderers = [Renderer(tokenizer, {**given, _TODAY: day}) for day in days]
    asked = {"role": "user", "content": "x"}
    for conversation in ([asked], [{"role": "system", "content": "x"}, asked]):
        with suppress(ChatTemplateError):  # no system role
            first, second = (one.render(conversation, add_generation_prompt=True) for one in renderers)
            if first != second:
                break
    else:
        return arguments
    warn_of_date(stacklevel=5)
    return freeze_arguments(tokenizer, {**given, _TODAY: datetime.date.today().isoformat()})


def warn_of_date(stacklevel: int = 4) -> None:
    """Say that the chat template writes the date, and which was fixed."""
    warnings.warn(
        "The chat template writes the date. Today's was fixed for this model, and is recorded with its name. For the "
        f'same prompts on another day pass the one that is to stand there: template_arguments={{"{_TODAY}": '
        '"2026-01-31"}.',
        DatedTemplateWarning,
        stacklevel=stacklevel,
    )


@checked
def list_template_variables(tokenizer: Any) -> frozenset[str]:
    """Return what a tokenizer's chat template reads besides the messages, such as ``enable_thinking`` or ``tools``.

    Args:
        tokenizer: A Hugging Face tokenizer with a chat template.

    Raises:
        ChatTemplateError: There is no template, or it is none.

    Example:
        >>> import persona_lens as pl
        >>> pl.models.list_template_variables(pl.load_model().tokenizer)  # doctest: +SKIP
        frozenset()
    """
    return _list_variables(_find_template(tokenizer))


@functools.lru_cache(maxsize=32)
def _list_variables(template: str) -> frozenset[str]:
    """Return the names that nothing else gives a value; of those that it may set itself, the ones that it asks for.

    It asks by ``{% if not date is defined %}{% set date = ... %}{% endif %}`` or ``{% set date = date or ... %}``.
    """
    parsed = _parse(template)
    own = {name.name for name in parsed.find_all(nodes.Name) if name.ctx == "store"}
    tests = (test for test in parsed.find_all(nodes.Test) if test.name in ("defined", "undefined"))
    asked = {test.node.name for test in tests if isinstance(test.node, nodes.Name)}
    for alternative in parsed.find_all(nodes.Or):
        if isinstance(alternative.left, nodes.Name):
            asked.add(alternative.left.name)
    for default in parsed.find_all(nodes.Filter):
        if default.name in ("default", "d") and isinstance(default.node, nodes.Name):
            asked.add(default.node.name)
    return frozenset(meta.find_undeclared_variables(parsed)) - (own - asked) - _OWN


def _parse(template: str) -> nodes.Template:
    environment = sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(_GENERATION_TAG.sub("", template))  # a tag of Hugging Face's own
    except jinja2.TemplateError as error:
        raise ChatTemplateError.of("tokenizer", "have a chat template in Jinja", template, str(error)) from error
    return parsed


@functools.lru_cache(maxsize=32)
def _write_today(template: str, date: datetime.date) -> str:
    """Return a template to which a day is today, in every format that it asks for.

    Transformers gives templates plain values alone, no functions, and its own ``strftime_now`` knows no other day.
    """
    calls = [call for call in _parse(template).find_all(nodes.Call) if getattr(call.node, "name", None) == _TODAY]
    formats = {call.args[0].value for call in calls if call.args and isinstance(call.args[0], nodes.Const)}
    days = {one: date.strftime(one) for one in sorted(map(str, formats))}
    macro = f"{{%- macro {_TODAY}(format) -%}}{{{{- {json.dumps(days)}[format] -}}}}{{%- endmacro -%}}"
    return macro + template


def _find_template(tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", type(tokenizer).__name__)
        hint = "Use a chat (instruct) model, or set tokenizer.chat_template."
        raise ChatTemplateError.of("tokenizer", "have a chat template", name, hint)
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several templates, none of them the default
        hint = "Set tokenizer.chat_template to the one that is meant."
        raise ChatTemplateError.of("tokenizer", "have one chat template, or a default", str(error), hint) from error


class Renderer:
    """A tokenizer's chat template with its arguments.

    Args:
        tokenizer: A Hugging Face tokenizer.
        arguments: Of this call; they go before those that the model was loaded with.

    Raises:
        ChatTemplateError: The tokenizer has no template.
        InvalidArgumentError: An argument that the template does not read.
    """

    def __init__(self, tokenizer: Any, arguments: TemplateArguments | None = None) -> None:
        _find_template(tokenizer)
        self.tokenizer = tokenizer
        loaded_with = json.loads(read_settings(tokenizer).arguments or "{}")
        self.arguments = loaded_with | json.loads(freeze_arguments(tokenizer, arguments) or "{}")
        self._template: str | None = None  # the tokenizer's own
        if _TODAY in self.arguments:
            self._template = _write_today(_find_template(tokenizer), _read_date(self.arguments.pop(_TODAY)))
        self._takes_parts = False
        self._takes_parts = self._reads_only_parts()

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return a conversation as the template writes it.

        Raises:
            ChatTemplateError: The template refuses it.
        """
        try:
            return self._apply(messages, add_generation_prompt)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            rule = "be a conversation that the chat template can render"
            raise ChatTemplateError.of("messages", rule, list(messages), str(error)) from error

    def keeps(self, messages: Sequence[Mapping[str, Any]], probe: str) -> bool:
        """Say whether the template renders a text rather than refusing the conversation or dropping it."""
        try:
            return probe in self._apply(messages, True)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError):
            return False

    def _reads_only_parts(self) -> bool:
        """Say whether the template takes a content as a list of parts, and not as a text."""
        template = _find_template(self.tokenizer)
        if "text" not in template or "type" not in template:
            return False
        probe = "persona-lens-probe"
        asked = [{"role": "user", "content": probe}]
        if self.keeps(asked, probe):
            return False
        self._takes_parts = True
        return self.keeps(asked, probe)

    def _apply(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> str:
        shown: list[dict[str, Any]] = [dict(message) for message in messages]
        if self._takes_parts:
            for message in shown:
                message["content"] = [{"type": "text", "text": message["content"]}]
        return str(
            self.tokenizer.apply_chat_template(
                shown,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.arguments,
            )
        )


def _read_date(value: object) -> datetime.date:
    try:
        if isinstance(value, str):
            return datetime.date.fromisoformat(value)
    except ValueError:
        pass
    rule = 'be a date such as "2026-01-31"'
    raise InvalidArgumentError.of(f"template_arguments[{_TODAY!r}]", rule, value)
