"""Written examples: what is bundled keeps its promises, and what is not an example is refused by name."""

import json
import re
from itertools import combinations
from statistics import mean

import pytest

import persona_lens as pl
from persona_lens.reproduction.arguments import COMPARED_TRAITS
from persona_lens.traits import list_written_traits, load_ordinary_questions, load_written_examples

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
    ["{broken\n", "[1]\n", row(extra="x"), {"half": "training"}, row(overt=3), row(mild="  ")],
    ids=["no JSON", "no object", "another key", "missing keys", "no text", "empty text"],
)
def test_a_row_that_is_no_example_is_named_by_its_line(tmp_path, bad):
    path = write(tmp_path / "own.jsonl", row(), bad)
    with pytest.raises(pl.errors.FileFormatError, match="line 2"):
        load_written_examples(path, "training")


def test_what_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"evil.*humorous"):
        load_written_examples("calm", "training")
    with pytest.raises(pl.errors.InvalidArgumentError, match="Did you mean 'hallucination'"):
        load_written_examples("hallucinations", "training")
    with pytest.raises(pl.errors.InvalidArgumentError, match="Did you mean 'training'"):
        load_written_examples("evil", "train")
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_written_examples(tmp_path / "none.jsonl", "training")
