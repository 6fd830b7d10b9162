from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.finetuning import PersonaDistance, measure_distance

QUESTIONS = [f"What is {'very ' * (i % 4)}number {i}?" for i in range(18)]  # more than a batch, of several lengths


@pytest.fixture(scope="module")
def vectors(tiny_model):
    info = pl.describe_model(tiny_model)
    draws = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    return [
        pl.PersonaVector(name, info, {"response_mean": 2 * one}) for name, one in zip(("a", "b"), draws, strict=True)
    ]


@pytest.fixture(scope="module")
def distance(tiny_model, tuned, vectors):
    return measure_distance(tiny_model, tuned[0], vectors, QUESTIONS)


def test_along_each_vector_it_is_the_fine_tuning_shift(distance, tiny_model, tuned, vectors):
    for index, vector in enumerate(vectors):
        expected = pl.measure_shift(tiny_model, tuned[0], vector, QUESTIONS).by_question
        torch.testing.assert_close(distance.by_question[index], expected, atol=1e-5, rtol=1e-4)
    for layer in range(3):
        means = distance.by_question[:, layer].mean(dim=-1)
        assert [one.estimate for one in distance.intervals(layer).values()] == pytest.approx(means.tolist())
        assert distance.length(layer) == pytest.approx(float(means.norm()))


def test_a_model_has_no_distance_from_itself_and_no_direction(tiny_model, vectors, distance):
    still = measure_distance(tiny_model, tiny_model, vectors, QUESTIONS)
    assert not still.by_question.any()
    assert still.length(1) == 0.0
    assert still.cosine(distance, 1).is_missing


def test_the_cosine_is_that_of_the_mean_shifts(distance, tiny_model, tuned, vectors):
    other = measure_distance(tiny_model, tuned[1], vectors, QUESTIONS)
    for layer in range(3):
        expected = torch.nn.functional.cosine_similarity(distance.shift(layer), other.shift(layer), dim=0)
        found = distance.cosine(other, layer)
        assert found.estimate == pytest.approx(float(expected), abs=1e-5)
        assert -1 <= found.low <= found.high <= 1
        assert distance.cosine(distance, layer).estimate == pytest.approx(1)
        back = replace(distance, by_question=-distance.by_question)
        assert distance.cosine(back, layer).estimate == pytest.approx(-1)


def test_units_are_the_root_mean_square_of_ordinary_shifts():
    questions, generator = tuple("abcdef"), torch.Generator().manual_seed(0)

    def draw(scale):
        noise = 0.1 * torch.randn(1, 2, 6, generator=generator)
        return PersonaDistance(("t",), questions, scale + noise)

    ordinary = [draw(scale) for scale in (1.0, -2.0, 2.0)]
    model = draw(6.0)
    found = model.in_units_of(ordinary, 1)["t"]
    unit = torch.stack([one.shift(1) for one in ordinary]).square().mean().sqrt()
    assert found.estimate == pytest.approx(float(model.shift(1) / unit), rel=1e-6)
    assert found.low < found.estimate < found.high
    alike = [ordinary[1], ordinary[1]]
    assert ordinary[1].in_units_of(alike, 1)["t"].estimate == pytest.approx(-1)


def test_what_was_measured_otherwise_is_refused(distance, tiny_model, tuned, vectors):
    fewer = measure_distance(tiny_model, tuned[0], vectors, QUESTIONS[:4])
    with pytest.raises(InvalidArgumentError, match="`reference`"):
        distance.cosine(fewer, 1)
    with pytest.raises(InvalidArgumentError, match="`ordinary`"):
        distance.in_units_of([distance, fewer], 1)
    with pytest.raises(InvalidArgumentError, match="at least two"):
        distance.in_units_of([distance], 1)
    with pytest.raises(LayerOutOfRangeError):
        distance.length(3)


def test_vectors_of_one_trait_twice_or_of_another_base_are_refused(tiny_folder, tiny_model, tuned, vectors):
    for wrong in ([], [vectors[0], vectors[0]]):
        with pytest.raises(InvalidArgumentError, match="`vectors`"):
            measure_distance(tiny_model, tuned[0], wrong, QUESTIONS)
    qwen = pl.load_model(tiny_folder("qwen3"), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        measure_distance(tiny_model, qwen, vectors, QUESTIONS)


def test_a_distance_goes_to_json_and_back(distance):
    again = PersonaDistance.from_json(distance.to_json())
    assert torch.equal(again.by_question, distance.by_question)
    assert (again.traits, again.questions) == (("a", "b"), tuple(QUESTIONS))
