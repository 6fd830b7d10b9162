import datetime

import pytest

from persona_lens.errors import ChatTemplateError, DatedTemplateWarning, InvalidArgumentError, SystemRoleMergedWarning
from persona_lens.models.text.chat import build_messages, encode_conversation, encode_prompt, encode_responses
from persona_lens.models.text.templates import (
    ChatSettings,
    freeze_arguments,
    list_template_variables,
    pin_today,
    read_settings,
    remember_settings,
)
from persona_lens.models.text.tokens import stop_token_ids
from tests.chat_templates import ALL, tokenizer_like
from tests.tiny import make_tokenizer

TOKENIZERS = {name: tokenizer_like(name) for name in ALL}
MESSAGES = [*build_messages("Hi there"), {"role": "assistant", "content": "Yes, I am."}]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("ignore::persona_lens.errors.SystemRoleMergedWarning")
def test_each_template_renders_a_prompt_and_responses_that_are_found(name):
    tokenizer = TOKENIZERS[name]
    prompt = encode_prompt(tokenizer, build_messages("Hi there", "Be kind."))
    assert "Be kind." in prompt.text
    assert tokenizer.decode(prompt.tokens) == prompt.text
    encoded = encode_conversation(tokenizer, MESSAGES)
    assert tokenizer.decode(encoded.response_tokens) == "Yes, I am."
    turns = [*MESSAGES, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    several = encode_responses(tokenizer, turns)
    assert [tokenizer.decode(several.tokens[a:b]) for a, b in several.responses] == ["Yes, I am.", "No."]
    assert several.tokens[several.responses[-1][1]] in stop_token_ids(tokenizer)


def test_the_variables_of_each_template_are_those_that_it_reads():
    known = {name: list_template_variables(tokenizer) for name, tokenizer in TOKENIZERS.items()}
    assert known == {
        "qwen3": {"enable_thinking"}, "llama3": {"date_string", "strftime_now", "tools"},
        "harmony": {"reasoning_effort", "strftime_now"}, "r1": set(), "gemma": set(), "mistral": {"system"},
        "phi": set(), "parts": set(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("qwen3", {"enable_thinking": False}, "<think>\n\n</think>"),
        ("llama3", {"date_string": "1 Jan 2025"}, "Today Date: 1 Jan 2025"),
        ("llama3", {"strftime_now": "2026-01-31"}, "Today Date: 31 Jan 2026"),
        ("llama3", {"tools": [{"name": "look_up"}]}, '[{"name": "look_up"}]'),
        ("harmony", {"reasoning_effort": "low", "strftime_now": "2026-01-31"}, "date: 2026-01-31\nReasoning: low"),
    ],
)
def test_an_argument_reaches_the_template_from_a_call_and_from_the_model(name, arguments, shown):
    tokenizer = tokenizer_like(name)
    before = encode_prompt(tokenizer, build_messages("Hi"))
    assert shown not in before.text
    called = encode_prompt(tokenizer, build_messages("Hi"), template_arguments=arguments)
    assert shown in called.text
    assert tokenizer.decode(called.tokens) == called.text
    assert encode_prompt(tokenizer, build_messages("Hi")) == before  # of that call alone
    remember_settings(tokenizer, ChatSettings(freeze_arguments(tokenizer, arguments)))
    assert encode_prompt(tokenizer, build_messages("Hi")) == called


def test_a_calls_argument_goes_before_the_models():
    tokenizer = tokenizer_like("llama3")
    remember_settings(
        tokenizer, ChatSettings(freeze_arguments(tokenizer, {"date_string": "A", "tools": [{"name": "T"}]}))
    )
    text = encode_prompt(tokenizer, build_messages("Hi"), template_arguments={"date_string": "B"}).text
    assert "Date: B" in text
    assert '[{"name": "T"}]' in text


def test_today_is_the_models_date_where_nobody_says_another():
    text = encode_prompt(TOKENIZERS["harmony"], build_messages("Hi")).text
    assert f"Current date: {datetime.date.today():%Y-%m-%d}" in text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"enable_thinkin": False}, r"template_arguments\['enable_thinkin'\].*takes enable_thinking"),
        ({"messages": []}, "be read by the chat template"),
        ({"tokenize": True}, "be read by the chat template"),
        ({"enable_thinking": object()}, "values that JSON has"),
        ({"enable_thinking": float("nan")}, "values that JSON has"),
    ],
)
def test_an_argument_that_nothing_reads_or_that_is_not_json_is_refused_by_name(arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        encode_prompt(TOKENIZERS["qwen3"], build_messages("Hi"), template_arguments=arguments)
    with pytest.raises(InvalidArgumentError, match=match):
        freeze_arguments(TOKENIZERS["qwen3"], arguments)


@pytest.mark.parametrize("date", ["31 Jan 2026", 20260131, None])
def test_today_must_be_a_date(date):
    with pytest.raises(InvalidArgumentError, match=r"strftime_now.*2026-01-31"):
        encode_prompt(TOKENIZERS["llama3"], build_messages("Hi"), template_arguments={"strftime_now": date})


@pytest.mark.parametrize("name", ["llama3", "harmony"])
def test_a_template_that_writes_the_day_keeps_it_and_says_so(name):
    tokenizer = tokenizer_like(name)
    with pytest.warns(DatedTemplateWarning, match="Today's was fixed"):
        pinned = pin_today(tokenizer, "")
    assert pinned == f'{{"strftime_now": "{datetime.date.today()}"}}'
    assert pin_today(tokenizer, pinned) == pinned
    before = encode_prompt(tokenizer, build_messages("Hi"))
    remember_settings(tokenizer, ChatSettings(pinned))
    assert encode_prompt(tokenizer, build_messages("Hi")) == before


def test_no_day_is_kept_where_prompts_have_none():
    for name in set(ALL) - {"llama3", "harmony"}:
        assert pin_today(TOKENIZERS[name], "") == ""
    given = freeze_arguments(TOKENIZERS["llama3"], {"date_string": "1 Jan 2025"})
    assert pin_today(TOKENIZERS["llama3"], given) == given
    for template in (None, "{# strftime_now #}", "{{ strftime_now", "{% set day = strftime_now('%d') %}"):
        assert pin_today(make_tokenizer(template=template), "") == ""


def test_several_templates_without_a_default_are_refused_when_a_prompt_is_written():
    tokenizer = make_tokenizer(template={"tool_use": "{{ strftime_now('%Y') }}", "plain": "x"})
    assert pin_today(tokenizer, "") == ""
    with pytest.raises(ChatTemplateError, match="default"):
        encode_prompt(tokenizer, build_messages("Hi"))


def test_arguments_for_no_template_and_a_template_that_is_none_are_refused():
    with pytest.raises(ChatTemplateError, match="instruct"):
        freeze_arguments(make_tokenizer(template=None), {"tools": []})
    with pytest.raises(ChatTemplateError, match="in Jinja"):
        list_template_variables(make_tokenizer(template="{% if %}"))


def test_arguments_are_frozen_in_one_order_and_read_back():
    tokenizer = tokenizer_like("llama3")
    frozen = freeze_arguments(tokenizer, {"tools": [], "date_string": "A"})
    assert (
        frozen == freeze_arguments(tokenizer, {"date_string": "A", "tools": []}) == '{"date_string": "A", "tools": []}'
    )
    assert freeze_arguments(tokenizer, None) == freeze_arguments(tokenizer, {}) == ""
    assert read_settings(tokenizer) == ChatSettings()
    remember_settings(tokenizer, ChatSettings(frozen, frozenset({7})))
    assert 7 in stop_token_ids(tokenizer)


def test_a_content_of_several_text_parts_is_their_text():
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    for tokenizer in TOKENIZERS.values():
        joined = [{"role": "user", "content": parts}, MESSAGES[1]]
        assert encode_conversation(tokenizer, joined) == encode_conversation(tokenizer, MESSAGES)


@pytest.mark.parametrize("part", [{"type": "image", "url": "x"}, {"type": "text"}, "Hi", {"text": "Hi"}])
def test_another_part_is_refused_by_name(part):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, part]}]
    with pytest.raises(InvalidArgumentError, match=r'messages\[0\]\["content"\]\[1\].*Only texts are read'):
        encode_prompt(make_tokenizer(), messages)


def test_a_system_prompt_that_gemma_has_no_role_for_is_merged_and_said_to_be():
    with pytest.warns(SystemRoleMergedWarning):
        encoded = encode_prompt(TOKENIZERS["gemma"], build_messages("Hi", "Be kind."))
    assert "<|im_start|>user\nBe kind.\n\nHi<|im_end|>" in encoded.text
