import json
import re
from pathlib import Path

import numpy as np
import pytest

from persona_lens.storage import ShardStore
from persona_lens.streams import Stream
from persona_lens.traits.library import list_traits
from persona_lens.traits.statements import list_statement_kinds

ROOT = Path(__file__).resolve().parents[1]
PYTHON = [*ROOT.glob("persona_lens/**/*.py"), *ROOT.glob("experiments/**/*.py")]
SOURCES = [path.read_text(encoding="utf-8") for path in PYTHON]


@pytest.mark.parametrize("stream", Stream)
def test_a_stream_draws_what_its_number_draws(stream):
    by_name, by_number = (np.random.default_rng((3, number, 1)).random(8) for number in (stream, stream.value))
    assert by_name.tolist() == by_number.tolist()


def test_the_numbers_are_those_that_the_published_figures_rest_on():
    assert {stream.name: stream.value for stream in Stream} == {
        "CALIBRATION": 101, "SEPARATION": 102, "EXTRACTION": 103, "SWEEP": 104, "CONFIRMATION": 105, "ORDINARY": 106,
        "CONDITIONS": 107, "PREFERENCE": 108,
        "TOKEN_POSITIONS": 120, "STEERING_MODES": 121, "MONITORING": 130, "MONITORING_EXAMPLES": 131,
        "TRAIT_DATA": 140, "FINETUNED_SCORES": 150, "ORDINARY_ROWS": 170, "SAMPLE_SEPARATION": 190,
        "EVIDENCE": 240, "STEERING_AWAY": 245,
        "BLIND_READING": 250,
        "TEMPERATURES": 260, "WAYS": 270, "DETECTION": 280, "HEADS": 290, "TRUTH": 300, "VECTOR_QUALITY": 310,
        "ROLES": 330, "PERSONA_SPACE": 331,
        "CONVERSATIONS": 340, "DRIFT": 350,
        "ORDINARY_RESPONSES": 326, "ALARMS": 321,
        "NULL_MARGIN": 360,
        "SHUFFLED_WORDS": 200,
        "REAL_CONVERSATIONS": 230,
        "CONTENTS": 370, "AUTOENCODER": 355, "PULL_BACK": 390, "CONTROL_MODEL": 391,
        "VECTOR_TRACKER": 400, "MOVING_VECTORS": 401,
        "HIDDEN_SIGNAL": 410, "ATTRIBUTIONS": 420, "INOCULATION": 440, "POSITIVE_TRAITS": 450,
        "REFLECTION": 380, "REFLECTION_PLACEBO": 381,
    }  # fmt: skip


def test_a_stream_in_a_run_s_configuration_reads_as_its_number(tmp_path):
    by_name, by_number = (ShardStore(tmp_path, {"stream": (0, number)}) for number in (Stream.SWEEP, 104))
    assert by_name.folder == by_number.folder
    assert json.loads((by_name.folder / "config.json").read_text()) == {"stream": [0, 104]}
    assert f"{Stream.SWEEP}" == str(Stream.SWEEP) == "104"


def test_an_index_added_to_a_stream_never_reaches_the_next():
    added = {name for source in SOURCES for name in re.findall(r"Stream\.(\w+) \+", source)}
    # The index of a trait, that of a kind of statement, and that of a condition of experiments/alarms.py.
    n_indices = {"FINETUNED_SCORES": len(list_traits()), "TRUTH": len(list_statement_kinds()), "ALARMS": 4}
    assert added == n_indices.keys()
    for name, n in n_indices.items():
        following = min(stream for stream in Stream if stream > Stream[name])
        assert following - Stream[name] >= n


def test_every_stream_is_drawn_from_and_none_is_numbered_by_hand():
    named = {name for source in SOURCES for name in re.findall(r"Stream\.([A-Z_]+)", source)}
    assert named == set(Stream.__members__)
    by_hand = re.compile(r"seed, \d+|seed \+ \d{2,}|\w*STREAM\w* = ")
    assert [found for source in SOURCES for found in by_hand.findall(source)] == []
