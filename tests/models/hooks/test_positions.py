import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooks.intervention import Step
from persona_lens.models.hooks.positions import Generation, PositionedHook, TokenSelector, following_generate
from persona_lens.models.hooks.sites import Site
from persona_lens.tensors.operations import Ablate, Add


def observe(positions, n_new, n_keys):
    """Tell positions of a pass over ``n_new`` tokens that see ``n_keys``."""
    for _, fn in positions.hook_pairs():
        fn(torch.zeros(1, 1, n_new, n_keys), hook=None)


def select(positions, n_rows, n_new, n_keys):
    observe(positions, n_new, n_keys)
    return positions.select(n_rows, n_new, torch.device("cpu"))


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_a_pass_over_a_cache_selects_what_the_whole_pass_selects_there(n_pos, prompt_length, data):
    split = data.draw(st.integers(0, n_pos - 1))
    for kind in ("response", "prompt"):
        whole = select(TokenSelector(kind, prompt_length), 2, n_pos, n_pos)
        continued = select(TokenSelector(kind, prompt_length), 2, n_pos - split, n_pos)
        assert torch.equal(whole[:, split:], continued)
        # Both reach the last prompt token, and no token is reached by neither.
    response, prompt = (select(TokenSelector(k, prompt_length), 1, n_pos, n_pos) for k in ("response", "prompt"))
    assert bool((response | prompt).all())
    assert (response & prompt)[0].nonzero()[:, 0].tolist() == [prompt_length - 1] * (prompt_length <= n_pos)


def test_all_positions_need_no_hook_of_their_own():
    positions = TokenSelector("all")
    assert positions.hook_pairs() == []
    assert positions.select(2, 5, torch.device("cpu")) is None


def test_generation_takes_the_first_pass_as_the_prompt_and_forgets_it_afterwards():
    positions = TokenSelector("response")
    for _ in range(2):
        with positions.generation(Generation()):
            assert select(positions, 1, 4, 4).tolist() == [[False, False, False, True]]
            assert select(positions, 1, 1, 5).tolist() == [[True]]
            assert select(positions, 1, 6, 6).tolist() == [[False, False, False, True, True, True]]
        with pytest.raises(InvalidArgumentError, match="prompt_length"):
            select(positions, 1, 4, 4)


def test_a_generation_read_in_pieces_keeps_its_prompt_and_lends_it_to_no_other():
    positions = TokenSelector("response")
    long, short = Generation(), Generation()
    with positions.generation(long):
        select(positions, 1, 4, 4)
        with positions.generation(short):
            assert select(positions, 1, 2, 2).tolist() == [[False, True]]
    with pytest.raises(InvalidArgumentError, match="prompt_length"):
        select(positions, 1, 3, 3)
    with positions.generation(long):
        assert select(positions, 1, 6, 6).tolist() == [[False, False, False, True, True, True]]


def test_a_pass_that_skips_block_0_is_refused():
    positions = TokenSelector("prompt", 2)
    observe(positions, 4, 4)
    with pytest.raises(InvalidArgumentError, match="block 0"):
        positions.select(1, 3, torch.device("cpu"))


def test_interventions_are_applied_in_order():
    direction = torch.tensor([0.0, 2.0])
    hook = PositionedHook(Site(0), [Step(0, Add(direction, 1.0)), Step(0, Ablate(direction))], TokenSelector("all"))
    residual = torch.tensor([[[3.0, 4.0]]])
    assert hook(residual, hook=None).tolist() == [[[3.0, 0.0]]]
    turned = PositionedHook(Site(0), [Step(0, Ablate(direction)), Step(0, Add(direction, 1.0))], TokenSelector("all"))
    assert turned(residual, hook=None).tolist() == [[[3.0, 2.0]]]
    assert residual.tolist() == [[[3.0, 4.0]]]
    assert repr(hook) == "PositionedHook(layer 0: Add 1 × a vector of length 2, Ablate)"


def test_a_mask_has_one_row_for_all_or_one_for_each():
    row = torch.tensor([[True, False, True]])
    assert select(TokenSelector(row), 2, 3, 3).tolist() == [[True, False, True]] * 2
    with pytest.raises(InvalidArgumentError, match="cover 3 rows"):
        select(TokenSelector(row.expand(2, -1)), 3, 3, 3)


def test_a_mask_takes_no_prompt_length():
    with pytest.raises(InvalidArgumentError, match="prompt_length"):
        TokenSelector(torch.ones(1, 4, dtype=torch.bool), 2)


class Generator(torch.nn.Module):
    """A model whose ``generate`` makes one pass over four tokens and says what positions select in it."""

    def generate(self, positions):
        return select(positions, 1, 4, 4).tolist()

    def generate_stream(self, positions):
        yield self.generate(positions)


def test_after_an_inner_block_the_outer_one_still_follows_generate():
    model, outer, inner = Generator(), TokenSelector("response"), TokenSelector("response")
    with following_generate(model, [outer]):
        with following_generate(model, [inner]):
            assert model.generate(inner) == [[False, False, False, True]]
        assert model.generate(outer) == [[False, False, False, True]]
        assert list(model.generate_stream(outer)) == [[[False, False, False, True]]]
    assert not {"generate", "generate_stream"} & vars(model).keys()
