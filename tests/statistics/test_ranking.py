"""Precision at the number of positives, and two scores compared, against counts by hand."""

import numpy as np
import pytest
import torch

import persona_lens as pl
from persona_lens.statistics import (
    auroc,
    bootstrap_auroc_by_group,
    bootstrap_auroc_difference_by_group,
    bootstrap_precision_by_group,
)


def draw(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=size)) for size in sizes]


def test_precision_is_the_share_of_positives_among_as_many_highest_scores():
    positive, negative = draw(12, 30)
    top = torch.cat([positive, negative]).topk(12).indices
    found = bootstrap_precision_by_group(positive, negative, range(12), range(12, 42))
    assert found.estimate == pytest.approx(float((top < 12).double().mean()))
    assert found.low < found.estimate < found.high


def test_ties_count_half_as_if_in_random_order():
    flat = torch.zeros(4, dtype=torch.float64)
    assert bootstrap_precision_by_group(flat, flat, range(4), range(4)).estimate == 0.5
    high, mixed = torch.ones(4, dtype=torch.float64), torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    # The best order finds all four, the worst only two.
    assert bootstrap_precision_by_group(high, mixed, range(4), range(4)).estimate == 0.75


def test_a_group_is_drawn_with_all_its_scores():
    positive, negative = draw(10, 10)
    repeated = [torch.cat([one, one]) for one in (positive, negative)]
    groups = [*range(10)] * 2
    once = bootstrap_precision_by_group(positive, negative, range(10), range(10))
    twice = bootstrap_precision_by_group(*repeated, groups, groups)
    assert twice.estimate == once.estimate
    # As wide, but for what one score a group is believed to vary at least.
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.02)


def test_a_difference_of_aurocs_is_theirs_and_nothing_of_a_score_with_itself():
    positive, negative, other_positive, other_negative = draw(15, 20, 15, 20)
    groups = [*range(15)], [*range(15), *range(5)]
    found = bootstrap_auroc_difference_by_group(positive + 1, negative, other_positive, other_negative, *groups)
    assert found.estimate == pytest.approx(auroc(positive + 1, negative) - auroc(other_positive, other_negative))
    same = bootstrap_auroc_difference_by_group(positive, negative, positive, negative, *groups)
    assert (same.estimate, same.low, same.high) == pytest.approx((0.0, 0.0, 0.0), abs=0.06)
    shared = bootstrap_auroc_difference_by_group(positive + 1, negative, positive + 0.9, negative, *groups)
    apart = bootstrap_auroc_by_group(positive + 1, negative, *groups)
    assert shared.high - shared.low < 0.7 * (apart.high - apart.low)  # paired: what both share cancels


def test_what_is_found_in_every_resample_has_a_width_that_few_groups_make_wider():
    rng = torch.arange(40.0, dtype=torch.float64)
    perfect = {n: bootstrap_precision_by_group(rng[:n] + 100, rng[:n], range(n), range(n)) for n in (5, 40)}
    assert [one.high for one in perfect.values()] == pytest.approx([1, 1])
    assert perfect[5].low < perfect[40].low < 1
    # Negatives of a hundred other groups are no further question with a positive.
    many = torch.zeros(100, dtype=torch.float64)
    other = bootstrap_precision_by_group(rng[:5] + 100, many, range(5), range(5, 105))
    assert other.low == pytest.approx(perfect[5].low)
    none = bootstrap_precision_by_group(rng[:5] - 100, rng[:5], range(5), range(5))
    assert (none.estimate, none.low) == pytest.approx((0, 0), abs=1e-12)
    assert none.high > 0.3


def test_a_perfect_score_is_not_surely_better_for_two_questions_that_another_loses():
    positive, negative = torch.ones(20, dtype=torch.float64), torch.zeros(60, dtype=torch.float64)
    groups = [*range(20)], [*range(20)] * 3
    other = positive.clone()
    other[:2] = -1
    found = bootstrap_auroc_difference_by_group(positive, negative, other, negative, *groups)
    assert found.estimate == pytest.approx(0.1)
    assert found.low < 0
    other[:10] = -1
    assert bootstrap_auroc_difference_by_group(positive, negative, other, negative, *groups).low > 0


def test_the_interval_of_a_difference_holds_the_true_one_about_as_often_as_it_says():
    rng, n_held, n_tried = np.random.default_rng(0), 0, 200
    groups = [*range(14)], [*range(14)] * 3
    for seed in range(n_tried):
        shared = [rng.normal(size=14) + 1, rng.normal(size=42)]
        sides = [torch.from_numpy(one + rng.normal(size=len(one))) for one in (*shared, *shared)]
        found = bootstrap_auroc_difference_by_group(*sides, *groups, n_resamples=300, seed=seed)
        n_held += found.low <= 0 <= found.high
    assert 0.92 <= n_held / n_tried <= 1


def test_scores_of_another_number_are_refused(own_checks_alone):
    positive, negative, other_positive, other_negative = draw(4, 8, 4, 8)
    groups = range(4), [*range(4)] * 2
    for wrong, name in (((other_positive[:3], other_negative), "other_positive"),
                        ((other_positive, other_negative[:6]), "other_negative")):  # fmt: skip
        with pytest.raises(pl.errors.InvalidArgumentError, match=f"`{name}` must have as many values as"):
            bootstrap_auroc_difference_by_group(positive, negative, *wrong, *groups)


def test_labels_that_do_not_fit_are_refused():
    positive, negative = draw(3, 4)
    for measure in (bootstrap_precision_by_group, bootstrap_auroc_by_group):
        with pytest.raises(pl.errors.InvalidArgumentError, match="`negative_groups` must label each of the 4 scores"):
            measure(positive, negative, range(3), range(3))
        with pytest.raises(pl.errors.InvalidArgumentError, match="`positive_groups` must name at least 2 groups"):
            measure(positive, negative, [0] * 3, [0] * 4)
