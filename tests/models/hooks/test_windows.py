import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError
from persona_lens.interventions import Window
from persona_lens.models.hooks.positions import PositionedHook, TokenSelector
from persona_lens.models.hooks.sites import Site
from persona_lens.tensors import Ablate, Add, Gate, KeepNorm

WINDOWS = st.builds(
    lambda start, length, every: Window(start, None if length is None else start + length, every),
    st.integers(0, 9), st.none() | st.integers(1, 9), st.integers(1, 4),
)  # fmt: skip
ONES = Add(torch.ones(8), 2.0)


@given(WINDOWS)
def test_a_window_is_a_range_of_the_responses_tokens(window):
    expected = list(range(window.start, 30 if window.stop is None else window.stop, window.every))
    assert [token for token in range(-5, 30) if token in window] == expected
    assert window.select(torch.arange(-5, 30)).tolist() == [token in window for token in range(-5, 30)]


@pytest.mark.parametrize(
    ("values", "parameter"),
    [({"start": -1}, "start"), ({"start": 3, "stop": 3}, "stop"), ({"stop": 0}, "stop"), ({"every": 0}, "every")],
)
def test_a_window_that_holds_nothing_is_refused(values, parameter):
    with pytest.raises(InvalidArgumentError, match=f"^`{parameter}`"):
        Window(**values)


@given(WINDOWS, st.integers(1, 12), st.lists(st.integers(1, 12), min_size=2, max_size=2), st.data())
def test_a_pass_over_a_cache_selects_what_the_whole_pass_selects_there(window, n_pos, lengths, data):
    split = data.draw(st.integers(0, n_pos - 1))
    for positions in ("response", "all"):
        selector = TokenSelector(positions, lengths, [window])
        ((_, observe),) = selector.hook_pairs()
        observe(torch.zeros(1, 1, n_pos, n_pos), hook=None)
        whole = selector.select(2, n_pos, torch.device("cpu"), window)
        assert whole.tolist() == [[at - (length - 1) in window for at in range(n_pos)] for length in lengths]
        observe(torch.zeros(1, 1, n_pos - split, n_pos), hook=None)
        assert torch.equal(selector.select(2, n_pos - split, torch.device("cpu"), window), whole[:, split:])


def test_steps_with_and_without_windows_keep_their_order():
    ablate, first = Ablate(torch.ones(8)), Window(stop=1)
    done = pl.Intervention.of(0, ONES) + pl.Intervention.of(0, ablate).during(first) + pl.Intervention.of(0, ONES)
    selector = TokenSelector("all", 2, [first])
    hook = PositionedHook(Site(0), done.steps_at(Site(0)), selector)
    selector.hook_pairs()[0][1](torch.zeros(1, 1, 4, 4), hook=None)
    found = hook(torch.zeros(1, 4, 8), hook=None)[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([4.0, 2.0, 4.0, 4.0]))
    assert hook.reach(1, 4, torch.device("cpu")).all()
    assert PositionedHook(Site(0), done.steps[1:2], selector).reach(1, 4, torch.device("cpu")).tolist() == [
        [False, True, False, False]
    ]
    add = "Add 2 × a vector of length 2.83"
    assert repr(hook) == f"PositionedHook(layer 0: {add}, Ablate during {first}, {add})"


def test_what_is_done_at_a_token_is_what_has_no_window_and_what_is_in_one():
    always, late = pl.Intervention.of(0, ONES), pl.Intervention.of(1, ONES).during(Window(start=2))
    assert always.at_token(-1) is always
    assert [(always + late).at_token(token).layers for token in (-1, 0, 1, 2, 9)] == [(0,)] * 3 + [(0, 1)] * 2


def test_digests_and_descriptions_without_a_window_are_those_of_stored_results():
    """The digest is of the words that this package's first results were stored under."""
    plain = pl.Intervention.of(3, ONES)
    ones = hashlib.sha256(torch.ones(8).numpy().tobytes()).hexdigest()[:16]
    described = [{"layer": 3, "kind": "Add", "direction": ones, "coefficient": 2.0}]
    assert plain.describe() == described
    assert plain.digest == hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16] == "0a97baf85025afef"
    windowed = plain.during(Window(stop=8))
    assert windowed.describe() == [described[0] | {"window": {"start": 0, "stop": 8, "every": 1}}]
    assert len({one.digest for one in (plain, windowed, plain.during(Window()), plain.during(Window(1)))}) == 4
    assert repr(plain) == "Intervention(layer 3: Add 2 × a vector of length 2.83)"


def test_a_gate_is_described_by_what_is_behind_it():
    gate = Gate((ONES, Ablate(torch.ones(8))), torch.ones(8), above=1.5)
    (described,) = pl.Intervention.of(3, gate).describe()
    assert [one["kind"] for one in described["operations"]] == ["Add", "Ablate"]
    assert (described["kind"], described["above"], described["below"]) == ("Gate", 1.5, None)
    json.dumps(described)


def test_norms_are_kept_within_each_window_and_windows_remain():
    first, late = Window(stop=2), Window(start=2)
    one, two = pl.Intervention.of(0, ONES, ONES), pl.Intervention.of(0, ONES)
    kept = (one.during(first) + two.during(late)).keeping_norm()
    assert [(type(step.operation), step.window) for step in kept.steps] == [(KeepNorm, first), (KeepNorm, late)]
    assert [len(step.operation.operations) for step in kept.steps] == [2, 1]


def test_a_second_window_is_refused():
    with pytest.raises(InvalidArgumentError, match="only one of its steps"):
        pl.Intervention.of(0, ONES).during(Window()).during(Window())


@pytest.mark.parametrize("positions", ["prompt", torch.ones(1, 4, dtype=torch.bool)])
def test_a_window_needs_positions_that_reach_the_response(positions):
    with pytest.raises(InvalidArgumentError, match="`positions` must be 'response' or 'all' with a window"):
        pl.interventions.intervention_hooks(pl.Intervention.of(0, ONES).during(Window()), positions=positions)
