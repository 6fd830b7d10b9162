import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError
from persona_lens.models.hooks.sites import check_layer, from_hidden_state_index, resolve_layers, to_hidden_state_index


@pytest.mark.parametrize("layer", [-1, 30, 31, True])
def test_a_layer_out_of_range_is_refused_with_the_range(layer):
    with pytest.raises(LayerOutOfRangeError, match=r"`layer` must be in \[0, 30\)\. Got .* The model has 30 layers\."):
        check_layer(layer, 30)


@pytest.mark.parametrize("layers", [[], [1, 1], "some"])
def test_lists_that_name_no_layers_or_one_twice_are_refused(layers):
    with pytest.raises(InvalidArgumentError, match="`layers`"):
        resolve_layers(layers, 3)


def test_a_range_of_layers_is_a_list_of_layers():
    assert resolve_layers(range(0, 30, 10), 30) == (0, 10, 20)
    assert resolve_layers("all", 2) == (0, 1)


@given(st.integers(0, 200))
def test_the_papers_layer_is_one_higher(layer):
    assert to_hidden_state_index(layer) == layer + 1
    assert from_hidden_state_index(to_hidden_state_index(layer)) == layer


def test_the_embedding_is_no_layers_output():
    with pytest.raises(LayerOutOfRangeError, match="embedding"):
        from_hidden_state_index(0)
