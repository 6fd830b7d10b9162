from hypothesis import given, settings
from hypothesis import strategies as st

from persona_lens.plots.labels import place_labels

POINTS = st.lists(st.tuples(st.floats(60, 540), st.floats(60, 540)), min_size=1, max_size=12)


@settings(max_examples=20)
@given(POINTS)
def test_no_label_lies_on_another_while_there_is_room(points):
    labels = place_labels(points, ["label"] * len(points), 600.0, 600.0)
    boxes = [label.box for label in labels]
    assert all(a.overlap(b) < 1.5 for i, a in enumerate(boxes) for b in boxes[:i])


@settings(max_examples=20)
@given(POINTS)
def test_labels_stay_within_the_area(points):
    for label in place_labels(points, ["label"] * len(points), 600.0, 600.0):
        assert min(label.box.left, label.box.bottom) >= 0
        assert max(label.box.right, label.box.top) <= 600
