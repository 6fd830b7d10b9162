"""The rows that experiments train models on."""

from persona_lens.reproduction.training import draw_task


def test_a_task_s_sets_have_no_row_in_common_and_none_with_those_held_out():
    sets, held_out = draw_task(n_sets=3, n_rows=4, n_held_out=5, seed=1)
    texts = [str(row["messages"]) for rows in (*sets, held_out) for row in rows]
    assert [len(rows) for rows in (*sets, held_out)] == [4, 4, 4, 5]
    assert len(set(texts)) == len(texts) == 17
    again, _ = draw_task(n_sets=3, n_rows=4, n_held_out=5, seed=1)
    assert [rows.to_list() for rows in again] == [rows.to_list() for rows in sets]
