import pytest
import torch

from persona_lens.statistics.missing import difference_interval, mean_interval


def test_fewer_than_two_values_give_no_interval_instead_of_an_error():
    one = torch.tensor([float("nan"), 42.0])
    assert mean_interval(one).is_missing
    assert difference_interval(one, one).is_missing


def test_what_is_missing_is_left_out_of_both_sides():
    a, b = torch.tensor([1.0, float("nan"), 5.0, 9.0]), torch.tensor([0.0, 2.0, float("nan"), 4.0])
    assert mean_interval(a).estimate == 5.0
    assert difference_interval(a, b).estimate == pytest.approx(3.0)
