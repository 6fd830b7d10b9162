"""Written examples: what is bundled keeps its promises, and what is not an example is refused by name."""

import json
import re
from itertools import combinations
from statistics import mean

import pytest

import persona_lens as pl
from persona_lens.judges.default import fit_reading_judge
from persona_lens.reproduction.arguments import COMPARED_TRAITS
from persona_lens.traits import WrittenExample, list_written_traits, load_ordinary_questions, load_written_examples
from tests.screening.test_splitting import ShoutJudge

KINDS = ("ordinary", "mild", "overt", "opposite", "style")
each_trait = pytest.mark.parametrize("trait", list_written_traits())


def both_halves(trait):
    return (*load_written_examples(trait, "training"), *load_written_examples(trait, "judging"))


def words(text):
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def overlap(first, second):
    return len(first & second) / len(first | second)


def row(half="training", **changed):
    return {"half": half, "question": "Why?", **{kind: f"{kind} answer" for kind in KINDS}, **changed}


def write(path, *rows):
    path.write_text("".join(one if isinstance(one, str) else json.dumps(one) + "\n" for one in rows))
    return path


def test_the_compared_traits_and_those_written_later_have_written_examples():
    assert set(list_written_traits()) == {*COMPARED_TRAITS, "curiosity", "honesty"}
    assert set(list_written_traits()) <= set(pl.list_traits())


@each_trait
def test_half_of_at_least_sixty_questions_is_for_training_and_half_for_judging(trait):
    training, judging = (load_written_examples(trait, half) for half in ("training", "judging"))
    assert len(training) == len(judging) >= 30


@each_trait
def test_every_answer_is_plain_prose_of_thirty_to_sixty_words(trait):
    for example in both_halves(trait):
        for kind in KINDS:
            text = getattr(example, kind)
            assert 30 <= len(text.split()) <= 60
            assert text.isascii()
            assert "\n" not in text


@each_trait
def test_the_kinds_are_of_one_length_so_that_length_tells_nothing(trait):
    lengths = {kind: mean(len(getattr(one, kind).split()) for one in both_halves(trait)) for kind in KINDS}
    assert max(lengths.values()) - min(lengths.values()) <= 4


@each_trait
def test_no_question_stands_in_another_list_or_in_the_other_half(trait):
    others = [pl.load_trait(name) for name in pl.list_traits()]
    asked = [question for one in others for question in (*one.extraction_questions, *one.evaluation_questions)]
    known = [words(question) for question in (*asked, *load_ordinary_questions())]
    own = [words(example.question) for example in both_halves(trait)]
    assert max(overlap(first, second) for first in own for second in known) < 0.6
    assert max(overlap(first, second) for first, second in combinations(own, 2)) < 0.6


def test_a_file_of_ones_own_is_read_half_by_half_and_in_order(tmp_path):
    path = write(tmp_path / "own.jsonl", row(), row("judging", question="Who?"), row(question="When?"))
    assert [one.question for one in load_written_examples(path, "training")] == ["Why?", "When?"]
    assert [one.question for one in load_written_examples(str(path), "judging")] == ["Who?"]
    assert load_written_examples(path, "judging")[0].style == "style answer"


@pytest.mark.parametrize(
    "bad",
    [
        "{broken\n",
        "[1]\n",
        row(extra="x"),
        {"half": "training"},
        row(overt=3),
        row(mild="  "),
        row(overt=None),
        row("test"),
        row(None),
    ],
    ids=[
        "no JSON",
        "no object",
        "another key",
        "missing keys",
        "no text",
        "empty text",
        "null",
        "another half",
        "no half",
    ],
)
def test_a_row_that_is_no_example_is_named_by_its_line(tmp_path, bad):
    path = write(tmp_path / "own.jsonl", row(), bad)
    with pytest.raises(pl.errors.FileFormatError, match="line 2"):
        load_written_examples(path, "training")


def test_what_is_wrong_with_a_row_is_said(tmp_path):
    needed = (
        r"must have the texts \['question', 'overt', 'opposite'\], and may have \['ordinary', 'mild', 'style', 'half'\]"
    )
    two = {"question": "Why?", "overt": "SO!"}
    cases = {
        "none of ['opposite']": two,
        "['mid'] too": row(mid="x"),
        "a 'mild' that is blank or no text, ' '": row(mild=" "),
    }
    for got, bad in cases.items():
        path = write(tmp_path / "own.jsonl", bad)
        with pytest.raises(pl.errors.FileFormatError, match=f"{needed}.*{re.escape(got)}"):
            load_written_examples(path, "training")


def test_two_answers_are_enough_and_a_row_without_a_half_is_for_training(tmp_path):
    two = {"question": "Why?", "overt": "SO!", "opposite": "so", "style": None}  # as `asdict` writes one without
    path = write(tmp_path / "own.jsonl", two, row("judging"))
    assert load_written_examples(path, "training") == (WrittenExample("Why?", overt="SO!", opposite="so"),)
    assert len(load_written_examples(path, "judging")) == 1
    path = write(tmp_path / "own.jsonl", two)
    with pytest.raises(pl.errors.FileFormatError, match="A row without `half` is of the training half"):
        load_written_examples(path, "judging")


def test_an_answer_that_is_missing_is_named_with_its_example_before_anything_is_made(tiny_model):
    whole = WrittenExample("What?", ordinary="So.", mild="So!", overt="SO!", opposite="so", style="Sooo.")
    examples = [*[whole] * 10, WrittenExample("Why?", ordinary="So.", overt="SO!", opposite="so", style="Sooo.")]
    trait = pl.load_trait("evil")
    bare = [WrittenExample("Why?", overt="SO!", opposite="so")] * 2
    for kind, example, call in (
        ("mild", 11, lambda: pl.judges.fit_embedding_judge("loud", examples)),
        ("mild", 11, lambda: pl.judges.validate(ShoutJudge(), "loud", examples)),
        ("mild", 11, lambda: fit_reading_judge(tiny_model, trait, examples)),
        ("ordinary", 1, lambda: pl.read_persona_vector(tiny_model, "loud", bare, against="ordinary")),
        ("style", 1, lambda: pl.vectors.read_pairs(tiny_model, "loud", bare, against="style")),
        ("ordinary", 1, lambda: pl.finetuning.read_signal(tiny_model, "loud", bare)),
    ):
        rule = f"must have a {kind!r} answer each, which is needed here. Got \"none in example {example}, 'Why?'\"."
        with pytest.raises(pl.errors.InvalidArgumentError, match=re.escape(rule)):
            call()


def test_answers_are_given_by_name_so_that_none_is_taken_for_another():
    with pytest.raises(TypeError):
        WrittenExample("Why?", "SO!", "so")


def test_what_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"evil.*humorous"):
        load_written_examples("calm", "training")
    with pytest.raises(pl.errors.InvalidArgumentError, match="Did you mean 'hallucination'"):
        load_written_examples("hallucinations", "training")
    with pytest.raises(pl.errors.InvalidArgumentError, match="Did you mean 'training'"):
        load_written_examples("evil", "train")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_written_examples(tmp_path / "none.jsonl", "training")
