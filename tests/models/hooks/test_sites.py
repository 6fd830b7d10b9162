import numpy as np
import pytest
import torch

from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError
from persona_lens.models.hooks.sites import check_layer, resolve_layers


@pytest.mark.parametrize("layer", [-1, 30, 31, True, np.int64(30), torch.tensor(True), torch.tensor(1.0)])
def test_a_layer_out_of_range_is_refused_with_the_range(layer):
    with pytest.raises(LayerOutOfRangeError, match=r"`layer` must be in \[0, 30\)\. Got .* The model has 30 layers\."):
        check_layer(layer, 30)


@pytest.mark.parametrize("layers", [[], [1, 1], "some"])
def test_lists_that_name_no_layers_or_one_twice_are_refused(layers):
    with pytest.raises(InvalidArgumentError, match="`layers`"):
        resolve_layers(layers, 3)


@pytest.mark.parametrize("layer", [7, np.int64(7), np.uint8(7), torch.tensor(7)])
def test_any_whole_number_is_a_layer_and_becomes_an_int(layer):
    assert type(check_layer(layer, 30)) is int
    assert check_layer(layer, 30) == 7
    assert resolve_layers(layer, 30) == (7,)


@pytest.mark.parametrize("layers", [np.array([0, 2]), torch.tensor([0, 2]), range(0, 3, 2), (np.int64(0), 2)])
def test_layers_come_in_any_sequence_of_whole_numbers(layers):
    found = resolve_layers(layers, 3)
    assert found == (0, 2)
    assert all(type(layer) is int for layer in found)


def test_a_truth_value_is_no_list_of_layers():
    with pytest.raises(LayerOutOfRangeError):
        resolve_layers(True, 3)


def test_a_range_of_layers_is_a_list_of_layers():
    assert resolve_layers(range(0, 30, 10), 30) == (0, 10, 20)
    assert resolve_layers("all", 2) == (0, 1)
