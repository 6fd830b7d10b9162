"""Judges that results rest on, made for a tiny random model: measured, named by their verdict, and kept."""

from dataclasses import replace

import pytest

import persona_lens as pl
from persona_lens.judges.encoders import ResidualEncoder
from persona_lens.reproduction import judges as made_here
from persona_lens.reproduction.judges import prepare_judges, prepare_sentence_judge
from persona_lens.reproduction.training import TRAINING
from persona_lens.storage import ShardStore
from tests.backends import BACKENDS
from tests.small_trait import tiny_trait

pytestmark = pytest.mark.slow

SAMPLING = pl.Sampling(max_new_tokens=4, temperature=0.7)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pl.Run(ShardStore(tmp_path_factory.mktemp("runs"), {}))


@pytest.fixture(scope="module")
def judges(tiny_model, run):
    return prepare_judges(tiny_model, pl.load_trait("formality"), SAMPLING, run, n_examples=10)


def test_each_judge_says_in_its_name_what_validation_found_of_it(judges):
    assert [one.name.split(" (")[0] for one in judges.all] == ["embedding judge", "embedding judge", "likelihood judge"]
    for one in judges.all:
        assert one.name.endswith(f", {one.validation.verdict} for formality")
        assert one.validation.n_questions == 10
        assert "hot v cool" in [contrast.name for contrast in one.validation.contrasts]


def test_a_second_script_takes_the_judges_that_a_first_one_made(judges, tiny_model, run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("made again")

    for name in ("fit_embedding_judge", "validate", "sample_temperatures"):
        monkeypatch.setattr(made_here, name, refuse)
    again = prepare_judges(tiny_model, pl.load_trait("formality"), SAMPLING, run, n_examples=10)
    assert [one.name for one in again.all] == [one.name for one in judges.all]
    assert [one.identity for one in again.all] == [one.identity for one in judges.all]


@pytest.fixture
def ready(judges, tiny_model, run, tmp_path, monkeypatch):
    """The judges as they would come with the package."""
    encoders = made_here.load_encoders(tiny_model)
    found = made_here.make_judges(tiny_model, pl.load_trait("formality"), SAMPLING, run, encoders, n_examples=10)
    found.save(tmp_path / "formality.json")
    monkeypatch.setattr(made_here, "READY", tmp_path)
    return found


def test_judges_that_come_with_the_package_are_those_that_would_be_made(ready, judges, tiny_model, monkeypatch):
    monkeypatch.setattr(made_here, "make_judges", None)
    again = prepare_judges(tiny_model, pl.load_trait("formality"), SAMPLING, pl.Run(), n_examples=10)
    assert [one.identity for one in again.all] == [one.identity for one in judges.all]
    assert again.validations == judges.validations
    texts = ["Because I say so, dear sir.", "nobody"]
    assert again.choosing.score(["Why?", "Who?"], texts) == judges.choosing.score(["Why?", "Who?"], texts)


def test_the_sentence_judge_alone_is_the_same_and_nothing_is_made_for_the_others(judges, tiny_model, monkeypatch):
    for name in ("calibrate_likelihood_judge", "make_judges"):
        monkeypatch.setattr(made_here, name, None)
    monkeypatch.setattr(ResidualEncoder, "encode", lambda *_: pytest.fail("read by the model"))
    alone = prepare_sentence_judge(tiny_model, pl.load_trait("formality"), SAMPLING, pl.Run(), n_examples=10)
    assert alone.identity == judges.sentences.identity
    assert alone.validation == judges.sentences.validation


def test_the_sentence_judge_alone_comes_with_the_package_too(ready, judges, tiny_model, monkeypatch):
    monkeypatch.setattr(made_here, "sample_temperatures", None)
    alone = prepare_sentence_judge(tiny_model, pl.load_trait("formality"), SAMPLING, pl.Run(), n_examples=10)
    assert (alone.identity, alone.name) == (judges.sentences.identity, judges.sentences.name)


@pytest.mark.parametrize("changed", [{"sampling": pl.Sampling(max_new_tokens=5, temperature=0.7)}, {"n_examples": 11}])
def test_judges_made_from_anything_else_are_not_taken_from_the_package(ready, tiny_model, run, monkeypatch, changed):
    monkeypatch.setattr(made_here, "make_judges", lambda *_, **__: pytest.fail("made anew"))
    given = {"sampling": SAMPLING, "n_examples": 10, **changed}
    with pytest.raises(pytest.fail.Exception, match="made anew"):
        prepare_judges(tiny_model, pl.load_trait("formality"), given["sampling"], run, n_examples=given["n_examples"])


def test_fewer_evaluation_questions_make_no_other_judges(ready, tiny_model, monkeypatch):
    monkeypatch.setattr(made_here, "make_judges", None)
    trait = pl.load_trait("formality")
    fewer = replace(trait, evaluation_questions=trait.evaluation_questions[:3])
    assert prepare_judges(tiny_model, fewer, SAMPLING, pl.Run(), n_examples=10).validations == ready.validations


@pytest.fixture(scope="module")
def embedded_in_bfloat16():
    return pl.load_model(dtype="bfloat16", device="cpu")


@pytest.mark.skipif("hooked" not in BACKENDS, reason="made with a HookedTransformer, which TransformerLens 4 has not")
@pytest.mark.parametrize("trait", pl.traits.list_written_traits())
def test_the_embedded_models_judges_come_with_the_package(embedded_in_bfloat16, trait, monkeypatch):
    monkeypatch.setattr(made_here, "make_judges", None)
    sampling = TRAINING["quick"].sample_once(0)
    prepare_judges(embedded_in_bfloat16, pl.load_trait(trait), sampling, pl.Run())


def test_other_examples_make_other_judges(judges, tiny_model, run):
    other = prepare_sentence_judge(tiny_model, pl.load_trait("formality"), SAMPLING, run, n_examples=11)
    assert other.identity != judges.sentences.identity


def test_a_trait_without_written_examples_has_the_likelihood_judge_alone(tiny_model, run):
    judges = prepare_judges(tiny_model, tiny_trait(), SAMPLING, run)
    assert judges.all == (judges.likelihood,)
    assert judges.choosing is judges.likelihood
    assert judges.validations == ()
    assert judges.likelihood.name == "likelihood judge (proxy)"


def test_the_judge_that_chooses_takes_its_scores_from_the_reader_and_coherence_from_the_likelihood_judge(judges):
    questions, responses = ["Why?", "Who?"], ["Because I say so, dear sir.", "nobody"]
    found = judges.choosing.score(questions, responses)
    assert [one.score for one in found] == [one.score for one in judges.reader.score(questions, responses)]
    assert [one.coherence for one in found] == [one.coherence for one in judges.likelihood.score(questions, responses)]
    assert judges.choosing.name == judges.reader.name


def test_judges_that_remember_encode_a_text_once_and_score_it_as_before(judges, monkeypatch):
    memory = {}
    texts = ["A text.", "Another one.", "A text."]
    first = made_here.remember(judges, memory)
    expected = [one.score for one in judges.sentences.score(["Q?"] * 3, texts)]
    assert [one.score for one in first.sentences.score(["Q?"] * 3, texts)] == expected
    encoder = judges.sentences.judge.encoder
    assert set(memory[encoder.identity]) == {"A text.", "Another one."}

    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(type(encoder), "encode", refuse)
    again = made_here.remember(judges, memory)
    assert [one.score for one in again.sentences.score(["Q?"] * 3, texts)] == expected
