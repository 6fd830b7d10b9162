import torch
from hypothesis import given
from hypothesis import strategies as st

from persona_lens.models.text.padding import pad_right

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=20), min_size=1, max_size=6)


@given(ROWS, st.integers(1, 16))
def test_what_is_no_padding_is_the_rows_and_the_length_the_least_multiple(rows, multiple):
    padded = pad_right(rows, multiple=multiple)
    n_pos = padded.tokens.shape[1]
    assert n_pos % multiple == 0 or (n_pos == 1 and not any(rows))
    assert n_pos - multiple < max(1, *map(len, rows), 0) <= n_pos
    assert padded.lengths.tolist() == [len(row) for row in rows]
    for row, tokens, is_padding in zip(rows, padded.tokens, padded.is_padding, strict=True):
        assert tokens[~is_padding].tolist() == list(row)
        assert not tokens[is_padding].any()
        assert is_padding.tolist() == [False] * len(row) + [True] * (n_pos - len(row))


def test_the_last_token_of_each_row_is_taken_from_whatever_stands_at_the_positions():
    padded = pad_right([(5, 6, 7), (8,)])
    assert padded.take_last(padded.tokens).tolist() == [7, 8]
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(padded.take_last(values), torch.stack([values[0, 2], values[1, 0]]))
