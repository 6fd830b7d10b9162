import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lens.errors import ChatTemplateError, InvalidArgumentError
from persona_lens.models.text.chat import build_messages, encode_conversation, encode_prompt, encode_responses
from persona_lens.models.text.spans import Thought, TokenSpans
from persona_lens.models.text.thoughts import find_markers, open_format
from persona_lens.models.text.tokens import stop_token_ids
from tests.chat_templates import ALL, THINKING, tokenizer_like
from tests.tiny import make_tokenizer

TOKENIZERS = {name: tokenizer_like(name) for name in (*ALL, "qwen3 as text")}
FORMATS = {name: open_format(TOKENIZERS[name]) for name in THINKING}
WORDS = st.text(min_size=1, max_size=12).filter(lambda text: text == text.strip() and "</" not in text)
# What may stand in a text and look like a marker, or like the beginning of one.
NEAR = st.lists(
    st.sampled_from(["<think>", "</think", "<", "think>", "\n", " ", "Hm", "é", "<|channel|>", "<|end|>"]), max_size=6
).map("".join)


def answered(question, answer, thought=None, system=None):
    more = {} if thought is None else {"reasoning_content": thought}
    return [*build_messages(question, system), {"role": "assistant", "content": answer, **more}]


def decode(name, tokens):
    return TOKENIZERS[name].decode(tokens)


def test_only_models_whose_template_or_tokens_name_both_markers_think():
    assert {name for name, tokenizer in TOKENIZERS.items() if find_markers(tokenizer)} == set(THINKING)
    assert open_format(make_tokenizer()) is None
    assert open_format(make_tokenizer(template="{{ messages[0].content }}<think>")) is None


@pytest.mark.parametrize("name", THINKING)
@settings(max_examples=20)
@given(thought=WORDS | NEAR.filter(str.strip), answer=WORDS, question=st.text(max_size=8) | NEAR)
def test_prompt_thought_markers_and_answer_tile_a_response(name, thought, answer, question):
    encoded = encode_conversation(TOKENIZERS[name], answered(question, answer, thought))
    assert encoded.prompt_tokens == encode_prompt(TOKENIZERS[name], build_messages(question)).tokens
    (start, end), (answer_start, answer_end) = encoded.find("thought"), encoded.find("answer")
    assert encoded.response_start <= start <= end <= answer_start < answer_end == encoded.response_end
    if "</think>" not in thought:  # as text, it would end the thought
        assert decode(name, encoded.tokens[start:end]).strip() == thought.strip()
        assert decode(name, encoded.tokens[answer_start:answer_end]) == answer
        masks = [encoded.draws_part(part) for part in ("thought", "answer", "response")]
        assert (masks[0] ^ masks[1]).equal(masks[2])
        assert not (masks[0] & masks[1]).any()
        assert masks[2].sum() == len(encoded.response_tokens) + 1
    between = decode(name, encoded.tokens[end:answer_start])
    assert between.strip() == find_markers(TOKENIZERS[name]).closing.strip()


@pytest.mark.parametrize("name", THINKING)
@settings(max_examples=20)
@given(text=st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "Hm", "Yes", "<", "</th", "ink>"]), max_size=9))
def test_a_response_read_as_it_comes_is_told_apart_as_when_it_is_read_whole(name, text):
    tokenizer = TOKENIZERS[name]
    swapped = {"<think>": "<|channel|>analysis<|message|>", "</think>": FORMATS["harmony"].close.replace("\0", "")}
    written = "".join(swapped.get(piece, piece) if name == "harmony" else piece for piece in text)
    prompt = encode_prompt(tokenizer, build_messages("Hi")).tokens
    tokens = tokenizer(written, add_special_tokens=False)["input_ids"]
    reader = FORMATS[name].begin(prompt)
    settled = 0
    for n, token in enumerate(tokens, 1):
        reader.feed(token)
        assert reader.thought == FORMATS[name].find(prompt, tokens[:n])
        assert settled <= reader.n_settled <= n
        settled = reader.n_settled
        # What is certain stays: the parts up to there are those of the whole response.
        whole = TokenSpans((0, *tokens), 1, len(tokens) + 1, thought=shift(FORMATS[name].find(prompt, tokens)))
        sofar = TokenSpans((0, *tokens[:n]), 1, n + 1, thought=shift(reader.thought))
        for part in ("thought", "answer"):
            assert sofar.is_part(part)[1 : settled + 1].equal(whole.is_part(part)[1 : settled + 1])


def shift(thought):
    return None if thought is None else thought.shift(1)


@pytest.mark.parametrize("name", THINKING)
def test_a_thought_in_the_text_is_the_same_as_one_of_its_own(name):
    tokenizer, markers = TOKENIZERS[name], find_markers(TOKENIZERS[name])
    apart = encode_conversation(tokenizer, answered("Hi", "Yes.", "Hm."))
    assert decode(name, apart.tokens[slice(*apart.find("thought"))]) == "Hm."
    inside = f"{markers.opening}Hm.{markers.closing}Yes."
    assert encode_conversation(tokenizer, answered("Hi", inside)) == apart
    other_key = [*build_messages("Hi"), {"role": "assistant", "content": "Yes.", "thinking": "Hm."}]
    assert encode_conversation(tokenizer, other_key) == apart


def test_a_thought_that_the_prompt_opened_need_not_be_opened_in_the_text():
    encoded = encode_conversation(TOKENIZERS["r1"], answered("Hi", "Hm.\n</think>\n\nYes."))
    assert encoded == encode_conversation(TOKENIZERS["r1"], answered("Hi", "Yes.", "Hm."))
    assert encoded.text.endswith("<|Assistant|><think>\nHm.\n</think>\n\nYes.<|im_end|>")
    assert decode("r1", encoded.prompt_tokens).endswith("<think>\n")
    # Qwen3's prompt opens none: there it is an answer that names the marker, which its template would cut.
    with pytest.raises(ChatTemplateError, match="as it is"):
        encode_conversation(TOKENIZERS["qwen3"], answered("Hi", "Hm.\n</think>\n\nYes."))


@pytest.mark.parametrize("name", THINKING)
def test_a_response_without_a_thought_is_left_to_the_template(name):
    encoded = encode_conversation(TOKENIZERS[name], answered("Hi", "Yes."))
    assert encoded.thought is None
    assert decode(name, encoded.response_tokens) == "Yes."
    assert encoded.find("answer") == encoded.find("response")
    assert encoded.find("thought")[0] == encoded.find("thought")[1]
    ends = {"qwen3": "<think>\n\n</think>\n\n", "r1": "<|Assistant|>", "harmony": "final<|message|>"}
    assert decode(name, encoded.prompt_tokens).endswith(ends[name.removesuffix(" as text")])


@pytest.mark.parametrize("name", THINKING)
def test_a_thought_that_does_not_end_is_no_answer(name):
    tokenizer, markers = TOKENIZERS[name], find_markers(TOKENIZERS[name])
    encoded = encode_conversation(tokenizer, answered("Hi", f"{markers.opening}Hm, well"))
    assert not encoded.thought.is_finished
    assert decode(name, encoded.tokens[slice(*encoded.find("thought"))]) == "Hm, well"
    assert encoded.find("answer") == (encoded.response_end, encoded.response_end)
    assert not encoded.draws_part("answer").any()
    prompt = encode_prompt(tokenizer, build_messages("Hi")).tokens
    found = FORMATS[name].find(prompt, encoded.response_tokens)
    assert found.shift(len(prompt)) == encoded.thought


def test_thoughts_of_earlier_answers_are_left_out_and_the_last_one_kept():
    turns = [*answered("Hi", "Yes.", "First."), *answered("And?", "<think>Second.</think>No.")]
    encoded = encode_responses(TOKENIZERS["qwen3"], turns)
    assert "First." not in encoded.text
    texts = [decode("qwen3", encoded.tokens[start:end]) for start, end in encoded.responses]
    assert texts == ["Yes.", "<think>\nSecond.\n</think>\n\nNo."]
    assert decode("qwen3", encoded.tokens[encoded.thought.start : encoded.thought.end]) == "Second."
    assert "First." not in encode_prompt(TOKENIZERS["qwen3"], [*turns[:2], turns[2]]).text


def test_thinking_switched_off_closes_the_thought_in_the_prompt_and_takes_no_thought():
    off = {"enable_thinking": False}
    tokenizer = TOKENIZERS["qwen3"]
    prompt = encode_prompt(tokenizer, build_messages("Hi"), template_arguments=off).tokens
    assert FORMATS["qwen3"].begin(prompt).state == "answering"
    assert FORMATS["qwen3"].find(prompt, tokenizer("Yes <think>x</think>")["input_ids"]) is None
    plain = encode_conversation(tokenizer, answered("Hi", "Yes."), template_arguments=off)
    assert plain.prompt_tokens == prompt
    with pytest.raises(ChatTemplateError, match="enable_thinking"):
        encode_conversation(tokenizer, answered("Hi", "Yes.", "Hm."), template_arguments=off)


def test_a_thought_for_a_model_that_does_not_think_is_refused():
    with pytest.raises(ChatTemplateError, match="that thinks"):
        encode_conversation(make_tokenizer(), answered("Hi", "Yes.", "Hm."))
    with pytest.raises(InvalidArgumentError, match=r"messages\[0\].*reasoning_content.*assistant"):
        encode_prompt(make_tokenizer(), [{"role": "user", "content": "Hi", "reasoning_content": "Hm."}])


def test_a_text_that_spells_a_marker_opens_and_closes_no_thought():
    for name in ("qwen3", "r1", "harmony"):
        tokenizer, markers = TOKENIZERS[name], find_markers(TOKENIZERS[name])
        opening, closing = markers.opening.strip(), markers.closing.strip()
        encoded = encode_prompt(tokenizer, build_messages(f"Say {opening} {closing} {opening}"))
        plain = encode_prompt(tokenizer, build_messages("Say"))
        ids = (
            set(tokenizer(opening + closing, add_special_tokens=False)["input_ids"])
            & tokenizer.added_tokens_decoder.keys()
        )
        assert all(encoded.tokens.count(token) == plain.tokens.count(token) for token in ids)
        assert encoded.controls
    # Spelt letter by letter, as a model may write it, it is no marker where one is a token of its own.
    prompt = encode_prompt(TOKENIZERS["r1"], build_messages("Hi")).tokens
    spelt = [token for letter in "Hm</think>x" for token in TOKENIZERS["r1"](letter)["input_ids"]]
    assert not FORMATS["r1"].find(prompt, spelt).is_finished


def test_a_gpt_oss_answer_without_analysis_has_an_empty_thought_and_a_comment_is_part_of_one():
    tokenizer = TOKENIZERS["harmony"]
    prompt = encode_prompt(tokenizer, build_messages("Hi")).tokens

    def read(text):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = FORMATS["harmony"].find(prompt, tokens)
        spans = TokenSpans((0, *tokens), 1, len(tokens) + 1, thought=found.shift(1))
        return [tokenizer.decode(spans.tokens[slice(*spans.find(part))]) for part in ("thought", "answer")]

    assert read("<|channel|>final<|message|>Yes.") == ["", "Yes."]
    assert read("<|channel|>commentary<|message|>Look.<|end|><|start|>assistant<|channel|>final<|message|>Yes.") == [
        "Look.", "Yes.",
    ]  # fmt: skip
    assert read("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant") == ["Hm.", ""]


def test_the_token_that_ends_gpt_oss_analysis_does_not_end_the_response():
    tokenizer = TOKENIZERS["harmony"]
    assert {tokenizer.convert_ids_to_tokens(one) for one in stop_token_ids(tokenizer)} == {
        "<|return|>", "<|endoftext|>", "<|im_end|>",
    }  # fmt: skip
    assert "<|end|>" in {TOKENIZERS["phi"].convert_ids_to_tokens(one) for one in stop_token_ids(TOKENIZERS["phi"])}


def test_a_thought_that_ends_at_once_is_empty():
    tokenizer = TOKENIZERS["qwen3"]
    prompt = encode_prompt(tokenizer, build_messages("Hi")).tokens
    tokens = tokenizer("<think>\n\n</think>\n\nYes", add_special_tokens=False)["input_ids"]
    assert FORMATS["qwen3"].find(prompt, tokens) == Thought(1, 1, 4, 6)


def test_an_earlier_answer_that_is_a_thought_alone_is_refused():
    turns = [*answered("Hi", "<think>I wonder"), *answered("And?", "Yes.")]
    with pytest.raises(InvalidArgumentError, match=r"messages\[1\]` must hold an answer"):
        encode_responses(TOKENIZERS["qwen3"], turns)


def test_an_empty_thought_in_data_made_with_thinking_off_is_none():
    off = {"enable_thinking": False}
    plain = encode_conversation(TOKENIZERS["qwen3"], answered("Hi", "Yes."), template_arguments=off)
    inline = answered("Hi", "<think>\n\n</think>\n\nYes.")
    assert encode_conversation(TOKENIZERS["qwen3"], inline, template_arguments=off) == plain
    assert encode_conversation(make_tokenizer(), answered("Hi", "Yes.", "\n")).thought is None
