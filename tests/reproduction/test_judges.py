"""Judges that results rest on, made for a tiny random model: measured, named by their verdict, and kept."""

import pytest

import persona_lens as pl
from persona_lens.reproduction import judges as made_here
from persona_lens.reproduction.judges import prepare_judges
from persona_lens.storage import ShardStore
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


def test_other_examples_make_other_judges(judges, tiny_model, run):
    other = prepare_judges(tiny_model, pl.load_trait("formality"), SAMPLING, run, n_examples=11)
    assert other.sentences.identity != judges.sentences.identity


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
