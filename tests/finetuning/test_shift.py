import pytest
import torch
from safetensors.torch import load_file, save_file

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.finetuning.shift import FinetuningShift
from tests.backends import BACKENDS
from tests.tiny import save_tiny

QUESTIONS = [f"What is {'very ' * (i % 4)}number {i}?" for i in range(18)]  # more than a batch, of several lengths


@pytest.fixture(scope="module")
def base(tiny_folder):
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ababab"}]}
    settings = pl.FinetuneSettings(rank=4, learning_rate=1e-2, accumulation=1, warmup_steps=0, dtype="float32")
    return pl.finetune(base, [row] * 6, tmp_path_factory.mktemp("tuned"), settings=settings).folder


@pytest.fixture(scope="module")
def stranger_folder(tmp_path_factory):
    """The same shape with other weights."""
    return save_tiny(tmp_path_factory.mktemp("stranger"), "llama", seed=5)


@pytest.fixture(scope="module", params=BACKENDS)
def models(request, base, folder):
    options = {"backend": request.param, "dtype": "float32", "device": "cpu"}
    return pl.load_model(base, **options), pl.load_model(base, adapter=folder, **options)


@pytest.fixture(scope="module")
def vector(models):
    directions = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    return pl.PersonaVector("loud", pl.describe_model(models[0]), {"response_mean": 2 * directions})


def test_a_model_has_not_moved_from_itself(models, vector):
    shift = pl.measure_shift(models[0], models[0], vector, QUESTIONS)
    assert torch.equal(shift.by_question, torch.zeros(3, 18))
    assert pl.measure_shift(*models, vector, QUESTIONS).by_question.abs().min(dim=1).values.max() > 1e-3


def test_the_shift_is_the_difference_of_the_last_prompt_tokens_projections(models, vector):
    shift = pl.measure_shift(*models, vector, QUESTIONS)
    for i, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        tokens = torch.tensor([pl.models.encode_prompt(models[0].tokenizer, messages).tokens])
        before, after = (pl.cache_residual_stream(model, tokens)[:, 0, -1] for model in models)
        for layer in range(3):
            expected = (after - before)[layer] @ vector.unit(layer)
            assert shift.by_question[layer, i].item() == pytest.approx(expected.item(), abs=1e-4)
    assert shift.trait == "loud"
    torch.testing.assert_close(shift.mean, shift.by_question.mean(dim=1))


def test_swapping_the_models_flips_the_sign(models, vector):
    there = pl.measure_shift(*models, vector, QUESTIONS[:3])
    # Both are called by the base, as a vector of the fine-tuned model does not fit the base.
    back = pl.measure_shift(*models[::-1], vector, QUESTIONS[:3])
    assert torch.equal(back.by_question, -there.by_question)


def test_hooks_on_a_model_take_effect(models, vector):
    model = models[0]
    plain = pl.measure_shift(*models, vector, QUESTIONS[:2])
    with pl.steering(models[1], vector, layer=2, coefficient=1.5):
        steered = pl.measure_shift(model, models[1], vector, QUESTIONS[:2])
    added = steered.by_question - plain.by_question
    torch.testing.assert_close(added[2], (1.5 * vector.norms[2]).expand(2), atol=1e-3, rtol=1e-3)
    assert torch.equal(added[:2], torch.zeros(2, 2))


def test_the_intervals_estimate_is_the_mean_over_questions():
    by_question = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]])
    shift = FinetuningShift("loud", by_question)
    for layer, mean in ((0, 2.0), (1, 1.0)):
        interval = shift.interval(layer)
        assert interval.estimate == mean == shift.mean[layer]
        assert interval.low < mean < interval.high
    with pytest.raises(LayerOutOfRangeError, match=r"\[0, 2\)"):
        shift.interval(2)


def test_a_shift_shows_its_mean_at_the_middle_layer():
    shift = FinetuningShift("loud", torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]]))
    assert repr(shift) == f"FinetuningShift(trait='loud', mean_at_layer_1={shift.interval(1)}, questions=3)"
    assert "mean at layer 1" in shift._repr_html_()
    one = FinetuningShift("loud", torch.tensor([[1.0], [-1.0]]))
    assert repr(one) == "FinetuningShift(trait='loud', mean_at_layer_1=-1.00, questions=1)"


def test_it_draws_the_mean_over_layers_with_its_interval_as_a_band():
    shift = FinetuningShift("loud <b>", torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 4.0]]))
    band, line = shift.plot().data
    assert list(line.x) == [0, 1]
    assert list(line.y) == [2.0, 1.0]
    intervals = [shift.interval(layer) for layer in (0, 1)]
    assert list(band.x) == [0, 1, 1, 0]
    assert list(band.y) == [*(one.high for one in intervals), *(one.low for one in reversed(intervals))]
    title = shift.plot().layout.title.text
    assert f"loud &lt;b&gt;: moved by {shift.interval(1)} at layer 1" in title
    assert "mean of 3 questions; band: 95 % bootstrap" in title.replace("<br>", " ")
    (line,) = FinetuningShift("loud", torch.tensor([[1.0], [-1.0]])).plot().data
    assert list(line.y) == [1.0, -1.0]


def test_a_vector_or_a_model_of_another_base_is_refused(models, vector, stranger_folder):
    stranger = pl.load_model(stranger_folder, dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError, match="come from the model it is used on"):
        pl.measure_shift(models[0], stranger, vector, QUESTIONS)
    with pytest.raises(ModelMismatchError):
        pl.measure_shift(stranger, models[1], vector, QUESTIONS)
    foreign = pl.PersonaVector("loud", pl.describe_model(stranger), {"response_mean": vector.directions})
    with pytest.raises(ModelMismatchError):
        pl.measure_shift(*models, foreign, QUESTIONS)


def test_the_same_adapter_on_another_base_is_refused(models, vector, folder, stranger_folder, tmp_path):
    """It fits there too, but the vector is not of that base."""
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    save_file(load_file(folder / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    other = pl.load_model(stranger_folder, adapter=tmp_path, dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        pl.measure_shift(models[0], other, vector, QUESTIONS)


def test_no_questions_are_refused(models, vector):
    with pytest.raises(InvalidArgumentError, match="`questions`"):
        pl.measure_shift(*models, vector, [])


def test_a_second_model_of_another_base_is_refused_before_the_first_one_runs(
    models, vector, stranger_folder, monkeypatch
):
    stranger = pl.load_model(stranger_folder, dtype="float32", device="cpu")
    monkeypatch.setattr("persona_lens.finetuning.shift.project_residual_stream", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ModelMismatchError):
        pl.measure_shift(models[0], stranger, vector, QUESTIONS)
