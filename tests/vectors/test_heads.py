"""Heads read slowly, probed by hand, and chosen where the difference was put."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import expit

import persona_lens as pl
from persona_lens.errors import HooksPresentError, InvalidArgumentError
from persona_lens.models import encode_conversation
from persona_lens.vectors import HeadChoice, HeadPairs, choose_heads, read_head_pairs
from persona_lens.vectors.heads import measure_accuracies
from tests.backends import BACKENDS
from tests.vectors.test_written import EXAMPLES

N_LAYERS, N_HEADS, D_HEAD = 3, 6, 8


def make_pairs(info, n=24, seed=0, planted=()):
    """Noise, and at some heads a difference of the classes along one axis."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.randn(2, n, N_LAYERS, N_HEADS, D_HEAD, generator=generator)
    for layer, head, axis, size in planted:
        positive[:, layer, head, axis] += size
        negative[:, layer, head, axis] -= size
    return HeadPairs("loud", info, positive, negative, tuple(range(n)))


@pytest.fixture(scope="module")
def info(tiny_model):
    return pl.describe_model(tiny_model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pairs_are_each_responses_mean_heads_of_an_ordinary_pass(tiny_folder, backend):
    model = pl.load_model(tiny_folder("llama"), backend=backend, dtype="float32", device="cpu")
    pairs = read_head_pairs(model, "loud", EXAMPLES)
    assert pairs.positive.shape == (5, N_LAYERS, N_HEADS, D_HEAD)
    for row, one in enumerate(EXAMPLES):
        for found, answer in ((pairs.positive, one.overt), (pairs.negative, one.opposite)):
            chat = [{"role": "user", "content": one.question}, {"role": "assistant", "content": answer}]
            spans = encode_conversation(model.tokenizer, chat)
            with torch.no_grad():
                _, cache = model.run_with_cache(torch.tensor([spans.tokens]))
            for layer in range(N_LAYERS):
                z = cache[f"blocks.{layer}.attn.hook_z"][0, spans.response_start : spans.response_end]
                torch.testing.assert_close(found[row, layer], z.mean(dim=0), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_read_is_refused(tiny_model, info):
    with pytest.raises(InvalidArgumentError, match="examples"):
        read_head_pairs(tiny_model, "loud", EXAMPLES[:1])
    with pytest.raises(InvalidArgumentError, match="overt"):
        read_head_pairs(tiny_model, "loud", EXAMPLES, against="overt")
    with tiny_model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: None)]), pytest.raises(HooksPresentError):
        read_head_pairs(tiny_model, "loud", EXAMPLES)
    pairs = make_pairs(info)
    for wrong in (
        {"questions": (0,)},
        {"positive": pairs.positive[:5]},
        {"negative": pairs.negative[..., :4]},
        {"negative": pairs.negative / 0},
    ):
        with pytest.raises(InvalidArgumentError):
            dataclasses.replace(pairs, **wrong)


def test_the_heads_with_a_difference_are_chosen_the_largest_first(info):
    pairs = make_pairs(info, planted=[(2, 1, 3, 3.0), (0, 5, 6, 1.0)])
    choice = choose_heads(pairs, 2)
    assert choice.heads == ((2, 1), (0, 5))
    assert choice.accuracies[2, 1] == 1.0
    others = [value for at, value in np.ndenumerate(choice.accuracies.numpy()) if at not in choice.heads]
    assert 0.35 < np.mean(others) < 0.65
    torch.testing.assert_close(choice.directions.norm(dim=-1), torch.ones(2))
    for (layer, head), axis, direction, sigma in zip(
        choice.heads, (3, 6), choice.directions, choice.sigmas, strict=True
    ):
        assert direction[axis] > 0.8  # towards the trait
        both = torch.cat([pairs.positive, pairs.negative])[:, layer, head] @ direction
        assert float(sigma) == pytest.approx(float(np.std(both.numpy())), rel=1e-5)


def test_of_heads_that_are_equally_accurate_the_earliest_are_chosen_and_the_figure_says_how_many_there_are(info):
    planted = [(*at, 9.0) for at in np.ndindex(N_LAYERS, N_HEADS, D_HEAD)]
    choice = choose_heads(make_pairs(info, n=6, planted=planted), 8, folds=2)
    assert choice.heads == (*((0, head) for head in range(6)), (1, 0), (1, 1))
    assert "the best, 18 of them, 100%" in choice.plot().layout.title.text


def test_accuracy_is_that_of_a_probe_written_by_hand(info):
    """Newton's method on the penalised likelihood of standardised outputs, over the same held-out questions."""
    from sklearn.model_selection import GroupKFold

    pairs, units = make_pairs(info, n=12, planted=[(1, 2, 0, 0.6)]), torch.logspace(-2, 2, D_HEAD)
    pairs = dataclasses.replace(pairs, positive=pairs.positive * units, negative=pairs.negative * units)
    found = measure_accuracies(pairs, 3, 5)
    labels, groups = np.repeat([1.0, 0.0], 12), np.tile(np.arange(12), 2)
    for layer, head in ((1, 2), (0, 0)):
        outputs = torch.cat([pairs.positive, pairs.negative])[:, layer, head].double().numpy()
        right = 0
        for fitted, held_out in GroupKFold(3, shuffle=True, random_state=5).split(outputs, labels, groups):
            assert not set(groups[fitted]) & set(groups[held_out])
            mean, scale = outputs[fitted].mean(0), outputs[fitted].std(0)
            x = np.c_[(outputs - mean) / scale, np.ones(24)]
            weights, penalty = np.zeros(9), np.diag([1.0] * 8 + [0.0])
            for _ in range(30):
                p = expit(x[fitted] @ weights)
                gradient = x[fitted].T @ (p - labels[fitted]) + penalty @ weights
                hessian = x[fitted].T @ (x[fitted] * (p * (1 - p))[:, None]) + penalty
                weights -= np.linalg.solve(hessian, gradient)
            right += int(((x[held_out] @ weights > 0) == (labels[held_out] > 0)).sum())
        assert float(found[layer, head]) == pytest.approx(right / 24)


def test_a_question_is_never_on_both_sides(info):
    """Copies of one pair under one number: were they split, a probe would know the answers by heart."""
    pairs = make_pairs(info, n=6)
    copies = dataclasses.replace(
        pairs,
        positive=pairs.positive.repeat(8, 1, 1, 1),
        negative=pairs.negative.repeat(8, 1, 1, 1),
        questions=pairs.questions * 8,
    )
    assert measure_accuracies(copies, 3, 0).mean() < 0.65
    apart = dataclasses.replace(copies, questions=tuple(range(48)))
    assert measure_accuracies(apart, 3, 0).mean() > 0.9


def test_any_estimator_may_find_the_directions_and_its_sign_does_not_matter(info):
    @dataclasses.dataclass(frozen=True)
    class Backwards:
        share: float = 0.5

        def estimate(self, positive, negative, layer):
            return self.share * (negative.mean(dim=0) - positive.mean(dim=0))

    pairs = dataclasses.replace(make_pairs(info, planted=[(2, 1, 3, 2.0)]), provenance={"source": "made up"})
    plain, backwards = choose_heads(pairs, 3), choose_heads(pairs, 3, estimator=Backwards())
    assert backwards.estimator == {"kind": "Backwards", "share": 0.5}
    assert plain.estimator == {"kind": "MeanDifference"}
    assert plain.provenance == {"source": "made up"}
    torch.testing.assert_close(plain.directions, backwards.directions)
    torch.testing.assert_close(plain.sigmas, backwards.sigmas)


def test_a_choice_comes_back_from_its_file(info, tmp_path):
    choice = choose_heads(make_pairs(info), 4, seed=3, folds=4)
    choice.save(tmp_path / "choice.json")
    again = HeadChoice.load(tmp_path / "choice.json")
    for field in dataclasses.fields(choice):
        first, second = getattr(choice, field.name), getattr(again, field.name)
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    assert (again.n_pairs, again.n_questions, again.folds, again.seed) == (24, 24, 4, 3)


def test_the_figure_shows_all_heads_and_rings_the_chosen_ones(info):
    choice = choose_heads(make_pairs(info, planted=[(2, 1, 3, 3.0)]), 2)
    figure = choice.plot()
    heat, rings = figure.data
    assert torch.equal(torch.tensor(heat.z), choice.accuracies.T)
    assert list(zip(rings.x, rings.y, strict=True)) == list(choice.heads)
    assert "loud: 1 of 18 heads" in figure.layout.title.text
    assert "layer 2 head 1, 100%" in figure.layout.title.text


def test_bad_choices_are_refused_by_name(info):
    pairs = make_pairs(info, n=6)
    for given, words in (
        ({"n_heads": 0}, "n_heads"),
        ({"n_heads": 19}, r"\[1, 18\]"),
        ({"n_heads": 1, "folds": 7}, r"folds.*\[2, 6\]"),
        ({"n_heads": 1, "folds": 1}, "folds"),
        ({"n_heads": 1, "seed": -1}, "seed"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            choose_heads(pairs, **{"folds": 2} | given)
    still = dataclasses.replace(pairs, positive=pairs.positive * 0 + 1, negative=pairs.negative * 0)
    stuck = dataclasses.replace(still, negative=still.positive)
    with pytest.raises(InvalidArgumentError, match=r"estimator.*layer 0, head 0"):
        choose_heads(stuck, 1, folds=2)

    class Across:
        def estimate(self, positive, negative, layer):
            return torch.eye(D_HEAD)[0]

    flat = dataclasses.replace(pairs, positive=still.negative, negative=still.negative)
    with pytest.raises(InvalidArgumentError, match=r"vary along the direction at layer 0, head 0"):
        choose_heads(flat, 1, estimator=Across(), folds=2)
    choice = choose_heads(pairs, 2, folds=2)
    for wrong in ({"heads": ()}, {"heads": ((3, 0), (0, 0))}, {"heads": ((0, 0), (0, 0))}, {"sigmas": torch.ones(3)}):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            dataclasses.replace(choice, **wrong)
