import json

import pytest

from tests.experiments.scripts import command, environment, run_script

pytestmark = pytest.mark.slow  # a whole script, run as a user runs it


@pytest.fixture(scope="module")
def setting(tmp_path_factory, roomy_folder):
    return tmp_path_factory.mktemp("alarms"), roomy_folder


@pytest.fixture(scope="module")
def shares(setting):
    done = run_script(command(setting, "alarms", "out"), env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    return json.loads((setting[0] / "out" / "alarms.json").read_text())["shares"]


def test_every_trait_is_tried_where_nothing_is_amiss_and_where_something_is(shares):
    conditions = ["everyday questions", "the trait's questions", "told to", "steered", "steered: the text alone"]
    for trait in ("evil", "sycophancy", "hallucination"):
        mine = [one for one in shares if one["trait"] == trait]
        assert [one["condition"] for one in mine] == [name for name in conditions for _ in range(2)]
        assert [one["quantile"] for one in mine] == [0.95, 0.99] * len(conditions)
        for lower, higher in zip(mine[::2], mine[1::2], strict=True):
            for what in ("tokens", "answers"):
                assert 0 <= higher[what]["estimate"] <= lower[what]["estimate"] <= 100
        shifted, text = (mine[at : at + 2] for at in (6, 8))
        for one, other in zip(shifted, text, strict=True):
            assert one["tokens"]["estimate"] >= other["tokens"]["estimate"]


def test_the_figure_is_redrawn_from_its_result_without_a_model(setting, shares):
    page = setting[0] / "out" / "alarms.html"
    before = page.read_bytes()
    done = run_script([*command(setting, "alarms", "out"), "--replot"], env=environment(), cwd=setting[0])
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before
