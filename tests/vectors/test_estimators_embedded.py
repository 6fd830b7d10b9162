"""Every estimator against another implementation, on what the embedded model makes of written answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import TruncatedSVD

import persona_lens as pl
from persona_lens.vectors import (
    CleanedDifference,
    FirstComponent,
    LogisticProbe,
    MeanDifference,
    ShrunkLDA,
    WithoutShared,
    find_vector,
    optimise_vector,
)
from tests.vectors.test_estimators import cosine, unit
from tests.vectors.test_preference import prefer_slowly

pytestmark = pytest.mark.slow
LAYERS = (0, 14, 29)


@pytest.fixture(scope="module")
def examples():
    """The shortest, so that reading them takes little."""
    known = pl.traits.load_written_examples("evil", "training")
    return sorted(known, key=lambda one: len(one.question + one.overt + one.opposite))[:6]


@pytest.fixture(scope="module")
def pairs(embedded_model, examples):
    return pl.vectors.read_pairs(embedded_model, "evil", examples)


def at(pairs, layer):
    return pairs.positive[:, layer], pairs.negative[:, layer]


def widen(pairs, layer):
    return [one.double().numpy() for one in at(pairs, layer)]


def test_written_answers_are_read_as_an_ordinary_pass_reads_them(embedded_model, examples, pairs):
    tokenizer = embedded_model.tokenizer
    for row in (0, 1):
        for kind, side in (("overt", pairs.positive), ("opposite", pairs.negative)):
            asked = [{"role": "user", "content": examples[row].question}]
            answer = [{"role": "assistant", "content": getattr(examples[row], kind)}]
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            whole = tokenizer.apply_chat_template(asked + answer, tokenize=False)
            whole = whole[: whole.rindex("<|im_end|>")]
            n_prompt, tokens = (tokenizer(one, add_special_tokens=False)["input_ids"] for one in (prompt, whole))
            with torch.no_grad():
                _, cache = embedded_model.run_with_cache(
                    torch.tensor([tokens]), names_filter=[f"blocks.{layer}.hook_resid_post" for layer in LAYERS]
                )
            for layer in LAYERS:
                expected = cache[f"blocks.{layer}.hook_resid_post"][0, len(n_prompt) :].mean(dim=0)
                assert cosine(side[row, layer], expected) > 1 - 1e-5
                assert float(side[row, layer].norm() / expected.norm()) == pytest.approx(1, abs=1e-3)


def test_the_mean_difference_is_numpys_however_it_is_found(embedded_model, examples, pairs):
    some = pairs.take(range(2))
    read, found = pl.read_persona_vector(embedded_model, "evil", examples[:2]), find_vector(some)
    for layer in LAYERS:
        positive, negative = widen(some, layer)
        expected = positive.mean(axis=0) - negative.mean(axis=0)
        for one in (MeanDifference().estimate(*at(some, layer), layer), found.direction(layer), read.direction(layer)):
            np.testing.assert_allclose(one.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_the_first_component_is_numpys_and_scikit_learns(pairs):
    for layer in LAYERS:
        positive, negative = widen(pairs, layer)
        differences = positive - negative
        values, axes = np.linalg.eigh(differences @ differences.T)  # through the pairs, which are fewer
        found = FirstComponent().estimate(*at(pairs, layer), layer)
        assert abs(cosine(found, axes[:, np.argmax(values)] @ differences)) > 1 - 1e-8
        svd = TruncatedSVD(n_components=1, algorithm="arpack", random_state=0).fit(differences)
        assert abs(cosine(found, svd.components_[0])) > 1 - 1e-8


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_at_the_probes_weights_its_formula_is_flat(pairs, strength):
    """The formula is convex, so there is its least value; by torch's derivative, the threshold found by bisection."""
    for layer in LAYERS:
        both = torch.cat(at(pairs, layer)).double()
        rows = both - both.mean(dim=0)
        rows = rows / rows.square().mean().sqrt()
        sign = torch.tensor([1.0] * len(pairs) + [-1.0] * len(pairs)).double()
        weights = LogisticProbe(strength).estimate(*at(pairs, layer), layer).double().requires_grad_()
        low, high = -100.0, 100.0
        for _ in range(100):
            middle = (low + high) / 2
            slope = -(sign * torch.sigmoid(-sign * (rows @ weights.detach() + middle))).sum()
            low, high = (low, middle) if slope > 0 else (middle, high)
        loss = torch.nn.functional.softplus(-sign * (rows @ weights + middle)).sum()
        (loss + strength / 2 * weights.square().sum()).backward()
        # Of the two parts of the derivative, which cancel.
        assert float(weights.grad.norm()) < 1e-3 * strength * float(weights.detach().norm())


def test_lda_is_numpys_with_scikit_learns_covariance(pairs):
    for layer in LAYERS:
        classes = widen(pairs, layer)
        within = np.concatenate([one - one.mean(axis=0) for one in classes])
        covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
        expected = np.linalg.solve(covariance, classes[0].mean(axis=0) - classes[1].mean(axis=0))
        found = ShrunkLDA().estimate(*at(pairs, layer), layer).numpy()
        assert cosine(found, expected) > 1 - 1e-6
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=1e-3)


def test_a_cleaned_difference_is_what_regression_on_the_components_leaves(pairs):
    ordinary = pairs.negative[2:]  # of the other questions: the top components are theirs
    some = pairs.take(range(2))
    for layer in LAYERS:
        texts = ordinary[:, layer].double().numpy()
        centred = texts - texts.mean(axis=0)
        _, mixtures = np.linalg.eigh(centred @ centred.T)
        axes = (mixtures[:, ::-1][:, :3].T @ centred).T
        positive, negative = widen(some, layer)
        difference = positive.mean(axis=0) - negative.mean(axis=0)
        expected = difference - axes @ np.linalg.lstsq(axes, difference, rcond=None)[0]
        found = CleanedDifference(ordinary, 3).estimate(*at(some, layer), layer)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_without_what_the_ready_vectors_share_is_what_regression_on_it_leaves(pairs):
    others = tuple(pl.load_vector(trait) for trait in ("sycophancy", "humorous", "formality"))
    for layer in LAYERS:
        shared = np.mean([unit(one.direction(layer)) for one in others], axis=0)[:, None]
        positive, negative = widen(pairs, layer)
        difference = positive.mean(axis=0) - negative.mean(axis=0)
        expected = difference - shared @ np.linalg.lstsq(shared, difference, rcond=None)[0]
        found = WithoutShared(others).estimate(*at(pairs, layer), layer)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_an_optimised_vectors_losses_and_steps_are_those_of_single_rows_with_the_public_hooks(embedded_model, examples):
    layer = 28
    some = [
        replace(one, overt=" ".join(one.overt.split()[:6]), opposite=" ".join(one.opposite.split()[:6]))
        for one in examples[:2]
    ]
    found = optimise_vector(embedded_model, "evil", some, layer, n_steps=2, batch_size=2, learning_rate=0.5)
    mean = pl.read_persona_vector(embedded_model, "evil", some).direction(layer)
    vector = (0.01 * mean).requires_grad_()
    adam = torch.optim.Adam([vector], lr=0.5 * float(mean.square().mean().sqrt()))
    losses, trained = [], [one for one in embedded_model.parameters() if one.requires_grad]
    for one in trained:
        one.requires_grad_(False)  # their derivatives would take memory and time
    try:
        for sign in (1.0, -1.0):
            adam.zero_grad()
            loss = sum(prefer_slowly(embedded_model, one, layer, vector, sign) for one in some) / 2
            loss.backward()
            adam.step()
            losses.append(loss.item())
    finally:
        for one in trained:
            one.requires_grad_(True)
    assert found.provenance["losses"][str(layer)] == pytest.approx(losses, abs=2e-3)
    assert cosine(found.direction(layer), vector.detach()) > 0.999
