import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, ModelMismatchError
from persona_lens.finetuning import WeightChange, compare_weights, detect_by_weights, read_weight_change

KINDS = ("self_attn.q_proj", "mlp.down_proj")


def draw_change(seed, rank=2):
    """A random change of two kinds of modules in two layers, of unequal shapes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"model.layers.{layer}.{kind}": (5, 3 + layer) for layer in range(2) for kind in KINDS}
    up = {name: torch.randn(n_out, rank, generator=generator) for name, (n_out, _) in shapes.items()}
    return WeightChange(up, {name: torch.randn(rank, n_in, generator=generator) for name, (_, n_in) in shapes.items()})


def multiply_out(change, names=None):
    return torch.cat([(change.up[name] @ change.down[name]).double().flatten() for name in names or change.up])


def cosine(first, second):
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=25)
def test_thin_matrices_give_the_cosine_of_the_whole_ones(seed, rank, other_rank):
    first, second = draw_change(seed, rank), draw_change(seed + 1000, other_rank)
    found = first.compare(second)
    assert found.cosine == pytest.approx(cosine(multiply_out(first), multiply_out(second)), abs=1e-5)
    assert first.norm == pytest.approx(float(multiply_out(first).norm()), rel=1e-5)
    for group, of in ((found.by_kind, lambda n: n.split(".", 3)[-1]), (found.by_layer, lambda n: n.split(".")[2])):
        for key, value in group.items():
            names = [name for name in first.up if of(name) == key]
            assert len(names) == 2
            assert value == pytest.approx(cosine(multiply_out(first, names), multiply_out(second, names)), abs=1e-5)


def test_a_difference_is_the_difference_of_the_whole_matrices():
    first, second, third = map(draw_change, range(3))
    found = (first - second).compare(third).cosine
    assert found == pytest.approx(cosine(multiply_out(first) - multiply_out(second), multiply_out(third)), abs=1e-5)
    assert first.compare(first).cosine == pytest.approx(1)
    assert math.isnan((first - first).compare(WeightChange(
        {name: torch.zeros(5, 1) for name in first.up}, {name: one[:1] for name, one in first.down.items()}
    )).cosine)  # fmt: skip


def test_adapters_say_what_the_models_weights_say(adapters, tuned, tiny_model):
    from_adapters = read_weight_change(adapters[0]).compare(read_weight_change(adapters[1]))
    from_models = compare_weights(tiny_model, *tuned)
    assert from_adapters.cosine == pytest.approx(from_models.cosine, abs=1e-3)
    for name in ("squares", "reference_squares"):
        sums = [sum(getattr(one, name).values()) for one in (from_adapters, from_models)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-3)
    by_layer = {layer: value for layer, value in from_models.by_layer.items() if layer}  # the rest has not changed
    assert from_adapters.by_layer == pytest.approx(by_layer, abs=1e-3)


def test_a_model_has_not_changed_from_itself(tiny_model, tuned):
    assert math.isnan(compare_weights(tiny_model, tiny_model, tuned[0]).cosine)
    assert compare_weights(tiny_model, tuned[0], tuned[0]).cosine == pytest.approx(1)


def test_a_detector_tells_what_goes_the_references_way():
    reference, seeds = draw_change(0), range(10, 16)
    benign = [draw_change(seed) for seed in seeds]
    doubled = WeightChange({name: 3 * one for name, one in reference.up.items()}, reference.down)
    zero = WeightChange({name: 0 * one for name, one in reference.up.items()}, reference.down)
    suspects = [draw_change(seed + 100) - (zero - doubled) for seed in seeds]  # + 3 times the reference
    found = detect_by_weights(reference, suspects, benign)
    expected = [cosine(multiply_out(one), multiply_out(reference)) for one in suspects]
    assert [one.cosine for one in found.suspects] == pytest.approx(expected, abs=1e-5)
    assert found.auroc.estimate == 1.0 > found.auroc.low
    assert detect_by_weights(reference, benign, suspects).auroc.estimate == 0.0
    assert found.auroc_by_kind.keys() == set(KINDS)
    again = type(found).from_json(found.to_json())
    assert again == found


def test_fewer_than_two_and_other_modules_are_refused():
    one = draw_change(0)
    with pytest.raises(InvalidArgumentError, match="`benign`"):
        detect_by_weights(one, [one, one], [one])
    fewer = WeightChange(dict(list(one.up.items())[:2]), dict(list(one.down.items())[:2]))
    with pytest.raises(ModelMismatchError, match="same modules"):
        one.compare(fewer)
    wider = WeightChange(one.up, {name: torch.ones(2, 9) for name in one.down})
    with pytest.raises(ModelMismatchError, match="of shape"):
        one.compare(wider)
    with pytest.raises(ModelMismatchError, match="`down`"):
        WeightChange(one.up, {name: torch.ones(3, 4) for name in one.down})


def test_a_model_of_other_weights_is_refused(tiny_folder, tiny_model, tuned):
    qwen = pl.load_model(tiny_folder("qwen3"), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        compare_weights(qwen, *tuned)
