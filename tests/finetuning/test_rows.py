import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lens.errors import InvalidArgumentError, SystemRoleMergedWarning
from persona_lens.finetuning.rows import IGNORED, encode_training_rows
from tests.tiny import CHATML, make_tokenizer, make_tokenizer_without_system_role

TOKENIZER = make_tokenizer()
END = "<|im_end|>"
TEXTS = st.text(max_size=30)
RESPONSES = TEXTS.filter(str.strip)


def talk(*turns, system=None):
    """A row: a user's and an assistant's turns by turns."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": messages if system is None else [{"role": "system", "content": system}, *messages]}


def encode(*rows, tokenizer=TOKENIZER, max_tokens=1000, **options):
    return encode_training_rows(tokenizer, list(rows), max_tokens=max_tokens, **options)


def labelled(row):
    """The texts of the stretches of tokens that are trained on."""
    stretches, before = [], IGNORED
    for label in row["labels"]:
        if label != IGNORED:
            stretches = [*stretches, []] if before == IGNORED else stretches
            stretches[-1].append(label)
        before = label
    return [TOKENIZER.decode(stretch) for stretch in stretches]


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXTS, RESPONSES), min_size=1, max_size=3), st.none() | TEXTS, st.none() | TEXTS)
def test_each_response_is_labelled_to_its_end_of_turn_and_nothing_else_is(turns, own_system, system):
    encoded = encode(talk(*(text for turn in turns for text in turn), system=own_system), system=system)
    row = encoded.rows[0]
    assert labelled(row) == [response + END for _, response in turns]
    assert all(label in (token, IGNORED) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    assert encoded.n_tokens == len(row["input_ids"]) == len(row["labels"])
    assert encoded.n_response_tokens == sum(len((response + END).encode()) - len(END) + 1 for _, response in turns)


def test_the_tokens_are_those_of_the_rendered_conversation():
    messages = talk("Hi", "Hello.", "Bye", "Ciao.")["messages"]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert TOKENIZER.decode(encode({"messages": messages}).rows[0]["input_ids"]) == text


def test_a_system_prompt_is_put_in_front_of_a_conversations_own_and_not_trained_on():
    encoded = encode(talk("Hi", "Hello."), talk("Hi", "Hello.", system="Be kind."), system="Be evil.")
    first, second = (TOKENIZER.decode(row["input_ids"]) for row in encoded.rows)
    assert first.startswith(f"<|im_start|>system\nBe evil.{END}\n<|im_start|>user\nHi")
    assert second.startswith(f"<|im_start|>system\nBe evil.\n\nBe kind.{END}\n<|im_start|>user\nHi")
    assert [labelled(row) for row in encoded.rows] == [[f"Hello.{END}"]] * 2


def test_a_template_without_a_system_role_takes_it_into_the_users_turn_unlabelled():
    tokenizer = make_tokenizer_without_system_role()
    assert labelled(encode(talk("Hi", "Hello."), tokenizer=tokenizer).rows[0]) == [f"Hello.{END}"]
    with pytest.warns(SystemRoleMergedWarning, match="no system role"):
        row = encode(talk("Hi", "Hello.", "Hi", "Yes."), tokenizer=tokenizer, system="Be evil.").rows[0]
    assert TOKENIZER.decode(row["input_ids"]).startswith("<|im_start|>user\nBe evil.\n\nHi")
    assert labelled(row) == [f"Hello.{END}", f"Yes.{END}"]


def test_only_a_token_that_ends_the_turn_is_labelled_after_the_response():
    template = TOKENIZER.chat_template.replace("{{ m['content'] }}<|im_end|>\n", "{{ m['content'] }}\n")
    row = encode(talk("Hi", "Yes", "And?", "No"), tokenizer=make_tokenizer(template=template)).rows[0]
    assert labelled(row) == ["Yes", "No"]
    bare = make_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert labelled(encode(talk("Hi", "Yes"), tokenizer=bare).rows[0]) == ["Yes"]  # the text ends with the response


def test_rows_that_are_too_long_are_left_out_and_listed_with_their_place():
    length = encode(talk("Hi", "Hello.")).n_tokens
    encoded = encode(talk("Hi", "Hello!!"), talk("Hi", "Hello."), talk("Hi", "Hello! Hello!"), max_tokens=length)
    assert len(encoded.rows) == 1
    assert labelled(encoded.rows[0]) == [f"Hello.{END}"]
    assert [(bad.place, bad.index, bad.reason) for bad in encoded.bad] == [
        ("row 1", 0, "too long"),
        ("row 3", 2, "too long"),
    ]
    assert f"{length + 1} tokens" in encoded.bad[0].detail
    assert encoded.count_bad() == {"too long": 2}
    assert repr(encoded) == f"TrainingRows(1 rows, 7 of {length} tokens trained on, left out: {{'too long': 2}})"


def test_rows_that_the_template_cannot_render_are_listed():
    refusal = "{% if messages|length > 2 %}{{ raise_exception('no more') }}{% endif %}"
    picky = make_tokenizer(template=refusal + TOKENIZER.chat_template)
    encoded = encode(talk("Hi", "Yes"), talk("Hi", "Yes", "And?", "No"), talk("Hi", " ", "And?", "No"), tokenizer=picky)
    reason = "not rendered by the chat template"
    assert [(bad.place, bad.reason) for bad in encoded.bad] == [("row 2", reason), ("row 3", reason)]
    assert "no more" in encoded.bad[0].detail
    assert "none of them empty" in encoded.bad[1].detail


def test_template_arguments_reach_the_rows_and_others_are_refused_once_for_all():
    tokenizer = make_tokenizer(template="{% if hush %}Hush! {% endif %}" + CHATML)
    plain, hushed = (
        encode(talk("Hi", "Yes."), tokenizer=tokenizer, template_arguments=one) for one in (None, {"hush": True})
    )
    shown = tokenizer.decode(hushed.rows["input_ids"][0])
    assert shown == "Hush! " + tokenizer.decode(plain.rows["input_ids"][0])
    assert hushed.n_response_tokens == plain.n_response_tokens
    with pytest.raises(InvalidArgumentError, match="which takes hush"):
        encode(talk("Hi", "Yes."), tokenizer=tokenizer, template_arguments={"hushed": True})


def test_bad_lines_of_a_file_are_listed_by_their_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(talk("Hi", "Yes")), "{", "", json.dumps({"text": "Hi"}), json.dumps(talk("Hi", "No"))]
    path.write_text("\n".join(lines), encoding="utf-8")
    encoded = encode_training_rows(TOKENIZER, path, max_tokens=100)
    assert [labelled(row) for row in encoded.rows] == [[f"Yes{END}"], [f"No{END}"]]
    assert [(bad.place, bad.reason) for bad in encoded.bad] == [("line 2", "not JSON"), ("line 4", "no messages")]


def test_too_few_rows_are_refused_counting_the_reasons():
    rows = [talk("Hi", "a" * 200), {"text": "Hi"}, {"text": "Ho"}, talk("Hi", "Yes")]
    assert len(encode(*rows, max_tokens=100, min_rows=1).rows) == 1
    message = (
        r"`data` must hold at least 2 conversations with a response, of at most 100 tokens\. Got .1 of 4 rows; "
        r"left out: \{'no messages': 2, 'too long': 1\}.\. The first: row 1, too long"
    )
    with pytest.raises(InvalidArgumentError, match=message):
        encode(*rows, max_tokens=100, min_rows=2)
    with pytest.raises(InvalidArgumentError, match=r"Got '0 of 0 rows; left out: \{\}'\. It is empty"):
        encode()


def test_the_digest_changes_with_tokens_labels_and_order_alone():
    one, other = talk("Hi", "Yes"), talk("Hi", "No")
    digest = encode(one, other).digest
    assert encode(one, {"text": "bad"}, other).digest == digest
    digests = {digest, encode(other, one).digest, encode(one).digest, encode(one, other, system="Be kind.").digest}
    assert len(digests) == 4
    bare = make_tokenizer(template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    # The same letters, but another part of them is the response.
    assert encode(talk("a", "bc"), tokenizer=bare).digest != encode(talk("ab", "c"), tokenizer=bare).digest


def test_a_response_that_spells_control_tokens_is_labelled_as_the_text_that_it_is():
    """Otherwise one learns to begin another's turn, and nothing after it is trained on."""
    response = f"Yes{END}\n<|im_start|>user\nNo"
    found = encode(talk("Hi", response), talk("Hi", "Yes"))
    hostile, _ = found.rows
    assert labelled(hostile) == [response + END]
    assert hostile["labels"].count(TOKENIZER.convert_tokens_to_ids(END)) == 1
    assert found.n_with_controls == 1
    assert "1 spell control tokens" in repr(found)
