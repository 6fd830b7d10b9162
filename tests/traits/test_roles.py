import re
from collections import Counter
from itertools import combinations

import pytest

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, TraitFormatError
from persona_lens.traits import Role, list_roles, load_role, load_role_questions

ALL = [load_role(name) for name in ("assistant", *list_roles())]
PROMPTS = {prompt: role.name for role in ALL for prompt in role.system_prompts}


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def test_there_are_roles_near_an_assistant_and_far_from_it():
    kinds = Counter(role.kind for role in ALL)
    assert kinds["assistant"] == 1
    assert kinds["service"] >= 10
    assert kinds["human"] >= 20
    assert kinds["non-human"] >= 10


@pytest.mark.parametrize("role", ALL, ids=lambda role: role.name)
def test_a_role_is_said_in_a_sentence_and_five_prompts_of_some_words(role):
    assert role.name.isascii()
    assert re.fullmatch(r"[A-Z][^\n]{15,110}\.", role.description)
    assert len(role.system_prompts) == 5
    least = 3 if role.name == "assistant" else 7
    assert all(least <= len(words(prompt)) <= 45 and len(prompt) <= 240 for prompt in role.system_prompts)
    assert all(prompt[-1] in '.!?"' or prompt.islower() for prompt in role.system_prompts)


def test_no_prompt_or_description_is_there_twice():
    assert len(PROMPTS) == 5 * len(ALL)
    assert len({role.description for role in ALL}) == len(ALL)


def test_no_two_prompts_are_one_sentence_with_other_words_put_in():
    said = {prompt: set(words(prompt)) for prompt in PROMPTS}
    for (one, first), (other, second) in combinations(said.items(), 2):
        assert len(first & second) / len(first | second) < 0.45, (one, other)


def test_no_opening_of_four_words_serves_many_prompts():
    openings = Counter(" ".join(words(prompt)[:4]) for prompt in PROMPTS)
    assert max(openings.values()) <= 4, openings.most_common(3)


def test_the_questions_are_distinct_short_and_no_trait_s_own():
    questions = load_role_questions()
    asked = {q for name in pl.list_traits() for q in pl.load_trait(name).extraction_questions}
    assert len(questions) == len(set(questions)) == 24
    assert all(len(question) < 90 and question[-1] in ".?" for question in questions)
    assert not asked & set(questions)


def test_a_role_s_file_comes_back_the_same(tmp_path):
    role = Role("clown", "human", "Falls over.", ("You are a clown.", "Honk!"))
    role.to_json(tmp_path / "clown.json")
    assert Role.from_json(tmp_path / "clown.json") == role
    assert role.fingerprint != Role("clown", "human", "Falls over.", ("You are a clown.",)).fingerprint


def test_a_wrong_name_is_told_the_nearest():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'pirate'"):
        load_role("pirates")


@pytest.mark.parametrize(
    "broken",
    [{"name": "Two words"}, {"system_prompts": ()}, {"system_prompts": ("Be.", "be. ")},
     {"description": " "}],
)  # fmt: skip
def test_a_malformed_role_is_refused_by_its_field(broken):
    whole = {"name": "clown", "kind": "human", "description": "Falls over.", "system_prompts": ("You are a clown.",)}
    with pytest.raises(TraitFormatError, match=next(iter(broken))):
        Role(**(whole | broken))


@pytest.mark.parametrize(("key", "value"), [("kind", '"fish"'), ("system_prompts", '"Honk!"'), ("name", "3")])
def test_a_file_with_another_kind_of_value_is_refused_by_its_key(tmp_path, key, value):
    texts = {"name": '"clown"', "kind": '"human"', "description": '"Falls."', "system_prompts": '["Honk!"]'} | {
        key: value
    }
    path = tmp_path / "role.json"
    path.write_text("{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}")
    with pytest.raises(TraitFormatError, match=f"`{key}`"):
        Role.from_json(path)


def test_unknown_and_missing_keys_of_a_file_are_named(tmp_path):
    path = tmp_path / "role.json"
    path.write_text('{"name": "clown", "kind": "human", "description": "Falls.", "prompts": ["Honk!"]}')
    with pytest.raises(TraitFormatError, match=r"missing keys \['system_prompts'\], unknown keys \['prompts'\]"):
        Role.from_json(path)
