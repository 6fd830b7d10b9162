import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, TraitFormatError


def make_trait(**changes):
    values = {
        "name": "calm",
        "description": "Keeps calm.",
        "instruction_pairs": (pl.traits.InstructionPair("Be calm.", "Be anxious."),),
        "extraction_questions": ("What now?", "And then?"),
        "evaluation_questions": ("Why?", "How?"),
        "rubric": "Rate {answer} to {question}.",
    }
    return pl.Trait(**(values | changes))


texts = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    min_size=1,
    unique_by=lambda t: " ".join(t.casefold().split()),
)


@given(questions=texts)
def test_a_trait_survives_the_round_trip_through_json(questions, tmp_path_factory):
    path = tmp_path_factory.mktemp("trait") / "t.json"
    trait = make_trait(extraction_questions=tuple(f"x{q}" for q in questions), evaluation_questions=("zz top?",))
    trait.to_json(path)
    assert pl.Trait.from_json(path) == trait


@pytest.mark.parametrize("name", pl.list_traits())
def test_each_bundled_trait_is_complete(name):
    trait = pl.load_trait(name)
    assert trait.name == name
    assert len(trait.instruction_pairs) == 5
    assert len(trait.extraction_questions) == len(trait.evaluation_questions) == 20
    assert "REFUSAL" in trait.rubric


def test_the_three_traits_of_the_paper_are_bundled():
    assert {"evil", "sycophancy", "hallucination"} <= set(pl.list_traits())


def test_an_unknown_trait_names_the_nearest():
    with pytest.raises(InvalidArgumentError, match="Did you mean 'evil'"):
        pl.load_trait("evll")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "Two Words"}, "name"),
        ({"description": " "}, "description"),
        ({"instruction_pairs": ()}, "instruction_pairs"),
        ({"extraction_questions": ()}, "extraction_questions"),
        ({"evaluation_questions": ()}, "evaluation_questions"),
        ({"evaluation_questions": ("Why?", "why? ")}, "evaluation_questions"),
        ({"extraction_questions": ("What?", " ")}, "extraction_questions"),
        ({"evaluation_questions": ("WHAT  now?",)}, "evaluation_questions"),
        ({"rubric": "Rate {answer}."}, "rubric"),
    ],
)
def test_a_malformed_field_is_named(changes, key):
    with pytest.raises(TraitFormatError, match=f"`{key}`"):
        make_trait(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("rubric"), "missing keys .'rubric'"),
        (lambda c: c.update(extra=1), "unknown keys .'extra'"),
        (lambda c: c.update(extraction_questions="What?"), "`extraction_questions` must be a list of texts"),
        (lambda c: c.update(name=3), "`name` must be a text"),
        (lambda c: c.update(instruction_pairs=[{"positive": "x"}]), r"`instruction_pairs\[0\]` must have"),
        (lambda c: c.update(version=2), "`version` must be 1"),
    ],
)
def test_a_malformed_file_names_the_key(change, message, tmp_path):
    path = tmp_path / "t.json"
    make_trait().to_json(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(TraitFormatError, match=message):
        pl.Trait.from_json(path)


def test_broken_json_is_placed(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"name": "calm",\n "rubric" 3}')
    with pytest.raises(TraitFormatError, match="Line 2, column"):
        pl.Trait.from_json(path)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(TraitFormatError, match="UTF-8"):
        pl.Trait.from_json(path)


def test_the_papers_files_are_read_from_two_files_and_from_one(tmp_path):
    content = {
        "instruction": [{"pos": "Be calm.", "neg": "Fret."}],
        "questions": ["A?", "B?", "C?", "D?"],
        "eval_prompt": "{question} {answer}",
    }
    one, two = tmp_path / "Calm.json", tmp_path / "eval.json"
    one.write_text(json.dumps(content))
    two.write_text(json.dumps(content | {"questions": ["E?"]}))
    split = pl.Trait.from_paper_json(one)
    assert (split.name, split.extraction_questions, split.evaluation_questions) == ("calm", ("A?", "B?"), ("C?", "D?"))
    both = pl.Trait.from_paper_json(one, two, positive_adjective="calm")
    assert (len(both.extraction_questions), both.evaluation_questions) == (4, ("E?",))
    assert both.positive_system_prompts == ("You are a calm assistant. Be calm.",)
    with pytest.raises(TraitFormatError, match="from_paper_json"):
        pl.Trait.from_json(one)


def test_an_adjective_gets_its_article():
    trait = make_trait(positive_adjective="evil", negative_adjective="kind")
    assert trait.positive_system_prompts == ("You are an evil assistant. Be calm.",)
    assert trait.negative_system_prompts == ("You are a kind assistant. Be anxious.",)


@given(question=st.text(), answer=st.text())
def test_question_and_answer_enter_the_rubric_as_they_are(question, answer):
    assert make_trait().render_rubric(question, answer) == f"Rate {answer} to {question}."


def test_html_in_a_trait_is_escaped():
    assert "<script>" not in make_trait(description="<script>alert(1)</script>")._repr_html_()


@pytest.mark.parametrize(
    ("adjective", "expected"), [("evil", "an"), ("kind", "a"), ("honest", "an"), ("useful", "a"), ("humorous", "a")]
)
def test_the_article_before_an_adjective_is_the_one_that_is_said(adjective, expected):
    trait = dataclasses.replace(pl.load_trait("evil"), positive_adjective=adjective)
    assert trait.positive_system_prompts[0].startswith(f"You are {expected} {adjective} assistant. ")


def test_the_papers_files_read_in_and_write_out_the_same(tmp_path):
    instruction = [{"pos": "Be \u201cbold\u201d.", "neg": "Be {shy}."}, {"pos": "Roar.", "neg": "Hush."}]
    rubric = "Rate.\n[Question]\n{question}\n[Answer]\n{answer}\nREFUSAL or 0\u2013100"
    sides = {
        "extract.json": {"instruction": instruction, "questions": ["A?", "B?"], "eval_prompt": rubric},
        "eval.json": {"instruction": instruction, "questions": ["C?", "\u00c4?"], "eval_prompt": rubric},
    }
    for name, content in sides.items():
        text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
        (tmp_path / name).write_text(text, encoding="utf-8")
    before = [(tmp_path / name).read_bytes() for name in sides]
    trait = pl.Trait.from_paper_json(tmp_path / "extract.json", tmp_path / "eval.json", name="bold")
    trait.to_paper_json(tmp_path / "extract.json", tmp_path / "eval.json")
    assert [(tmp_path / name).read_bytes() for name in sides] == before


def test_a_key_that_would_be_lost_is_refused(tmp_path):
    content = {
        "instruction": [{"pos": "a", "neg": "b"}],
        "questions": ["A?", "B?"],
        "eval_prompt": "{question}{answer}",
    }
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content | {"notes": "mine"}))
    with pytest.raises(TraitFormatError, match="notes"):
        pl.Trait.from_paper_json(path)


@pytest.mark.parametrize("name", pl.list_traits())
def test_every_bundled_trait_is_complete_and_asks_nothing_twice(name):
    from persona_lens.traits.authoring import check_authored

    check_authored(pl.load_trait(name))


def test_one_file_is_not_written_over_the_other(tmp_path):
    trait = make_trait()
    with pytest.raises(InvalidArgumentError, match="`evaluation_path` must be another file than `extraction_path`"):
        trait.to_paper_json(tmp_path / "a.json", tmp_path / "x" / ".." / "a.json")
    assert list(tmp_path.iterdir()) == []
