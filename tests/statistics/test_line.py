"""Lines through points of groups: the fit is least squares, the band rests on groups."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona_lens.errors import InvalidArgumentError
from persona_lens.statistics import bootstrap_line_by_group

GROUPS = [*range(6)] * 2


def points(seed, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=12)
    return x, 3 * x + 1 + noise * rng.normal(size=12)


@given(seed=st.integers(0, 100), offset=st.floats(-1e4, 1e4))
def test_the_line_is_least_squares_wherever_the_points_lie(seed, offset):
    x, y = points(seed)
    places = np.array([-1.0, 0.0, 2.0]) + offset
    found = bootstrap_line_by_group(
        torch.from_numpy(x + offset), torch.from_numpy(y), GROUPS, torch.from_numpy(places), n_resamples=50
    )
    expected = np.polyval(np.polyfit(x, y, 1), places - offset)
    np.testing.assert_allclose([one.estimate for one in found], expected, rtol=1e-6, atol=1e-6)
    assert all(one.low <= one.estimate <= one.high for one in found)


def test_points_on_a_line_leave_no_band_and_the_band_is_narrowest_among_the_points():
    x, y = map(torch.from_numpy, points(0, noise=0.0))
    for one in bootstrap_line_by_group(x, y, GROUPS, torch.tensor([0.0, 5.0])):
        assert one.high - one.low == pytest.approx(0, abs=1e-9)
    x, y = map(torch.from_numpy, points(0))
    middle, outside = bootstrap_line_by_group(x, y, GROUPS, torch.tensor([float(x.mean()), 10.0]))
    assert middle.high - middle.low < (outside.high - outside.low) / 3


def test_points_said_twice_of_the_same_groups_make_no_narrower_band():
    x, y = map(torch.from_numpy, points(1))
    once = bootstrap_line_by_group(x, y, GROUPS, torch.tensor([1.0]))
    twice = bootstrap_line_by_group(torch.cat([x, x]), torch.cat([y, y]), GROUPS * 2, torch.tensor([1.0]))
    assert twice[0].low == pytest.approx(once[0].low)
    assert twice[0].high == pytest.approx(once[0].high)


def test_a_constant_x_has_no_line():
    found = bootstrap_line_by_group(torch.full((12,), 1e6), torch.arange(12.0), GROUPS, torch.tensor([0.0]))
    assert found[0].is_missing


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"groups": [0, 1] * 6}, "groups"), ({"groups": GROUPS[:5]}, "groups"),
        ({"y": torch.full((12,), float("nan"))}, "y"), ({"at": torch.zeros(0)}, "at"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(changed, name):
    given = {"x": torch.arange(12.0), "y": torch.arange(12.0), "groups": GROUPS, "at": torch.zeros(1), **changed}
    with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
        bootstrap_line_by_group(**given)
