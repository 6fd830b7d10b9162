import json

from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl

FINDINGS = st.builds(
    pl.diagnosis.Finding, name=st.text(), passed=st.sampled_from([True, False, None]), seen=st.text(), cure=st.text()
)
DIAGNOSES = st.builds(
    pl.diagnosis.Diagnosis,
    model=st.text(),
    backend=st.sampled_from(["hooked", "bridge"]),
    dtype=st.just("float32"),
    fingerprint=st.text(),
    seconds=st.floats(0, 100),
    findings=st.lists(FINDINGS, max_size=4).map(tuple),
)


@given(DIAGNOSES)
def test_a_diagnosis_comes_back_from_json_the_same(diagnosis):
    assert pl.diagnosis.Diagnosis.from_json(json.loads(json.dumps(diagnosis.to_json()))) == diagnosis


@given(DIAGNOSES)
def test_it_passes_unless_a_check_failed(diagnosis):
    assert diagnosis.passed == all(one.passed is not False for one in diagnosis.findings)
    assert str(diagnosis).count("FAILED") >= len(diagnosis.failed)


@given(DIAGNOSES)
def test_nothing_in_a_notebooks_table_is_markup(diagnosis):
    shown = diagnosis._repr_html_()
    for tag in ("table", "caption", "tr", "th", "td"):
        shown = shown.replace(f"<{tag}>", "").replace(f"</{tag}>", "")
    assert "<" not in shown
    assert ">" not in shown
