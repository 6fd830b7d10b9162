"""Every number that the README and the pages report comes from a committed file; what their code does, it does."""

import json
import re
from pathlib import Path

import pytest
import torch

import persona_lens as pl
from tests.interventions.test_steering import make_vector

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
HOOKS = (ROOT / "docs" / "howto" / "hooks.md").read_text()


def conversations_a_second(content):
    """Of one core; rows that cannot be scored take no time."""
    assert content["screening_seconds"] is not None, "screening was broken off: run it again to know its speed"
    return content["counts"]["scored"] / content["screening_seconds"]


def cost_lines(content):
    """What the page on large screenings says: measured figures, and the estimate that it derives from them."""
    tokens, n_sampled = content["mean_tokens"], content["max_answer_tokens"]
    rate, size = conversations_a_second(content), content["bytes"] / sum(content["counts"].values())
    n_read = 2 * tokens["prompt"] + tokens["response"]
    seconds = n_read * 2 * 7e9 / (0.4 * 989e12) + n_sampled / 128 * 14e9 / 3.35e12
    return [
        f"| conversations a second on one core, 135M model, {len(content['traits'])} traits (ShareGPT) | {rate:.2f} |",
        f"| mean tokens: prompt, answer (cut at {n_sampled}) | {tokens['prompt']:.0f}, {tokens['response']:.0f} |",
        f"| a million conversations at that speed | {1e6 / rate / 86400:.1f} days |",
        f"| on disk, a million rows with their texts | {size / 1e3:.1f} GB |",
        f"| *estimate*: 7B model, one H100, a million such conversations | {seconds * 1e6 / 3600:.0f} hours |",
    ]


def bench_cost_lines(bench):
    return [
        f"| reading, checking and cutting, rows a second | {bench['details']['rows read a second, without a model']} |",
        f"| without sampling the model's own answer | {ratio_of(bench, 'speed-up of screening'):.1f} times as fast |",
        f"| five traits in place of one, time | {ratio_of(bench, 'time of screening'):.2f} |",
    ]


def ratio_of(bench, what):
    return next(row["ratio"]["median"] for row in bench["rows"] if row["what"].startswith(what))


BENCHMARKS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
SWEEPS = sorted((ROOT / "figures").glob("layer_sweep_*.json"))


def test_the_page_on_large_screenings_shows_what_was_measured():
    content = json.loads((ROOT / "figures" / "real_conversations.json").read_text())
    page = (ROOT / "docs" / "howto" / "screen-a-million.md").read_text()
    for line in cost_lines(content):
        assert line in page


@pytest.mark.parametrize("path", [path for path in BENCHMARKS if path.stem == "screening"], ids=lambda path: path.stem)
def test_the_page_on_large_screenings_shows_the_benchmark(path):
    page = (ROOT / "docs" / "howto" / "screen-a-million.md").read_text()
    for line in bench_cost_lines(json.loads(path.read_text())):
        assert line in page


def test_there_is_something_to_show():
    assert SWEEPS
    assert len(BENCHMARKS) >= 4


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_has_its_picture(path):
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.versions
def test_the_code_of_the_readme_runs_and_answers_twice(capsys):
    code = re.search(r"<!-- start -->.*?```python\n(.*?)```.*?<!-- /start -->", README, re.DOTALL).group(1)
    exec(code, {})
    answers = re.match(r"unsteered: (.{20,})\nsteered:   (.{20,})\n$", capsys.readouterr().out, re.DOTALL)
    assert answers.group(1) != answers.group(2)


def test_the_analysis_of_the_page_on_hooks_runs(tiny_model, capsys):
    """It mixes this package's hooks with ordinary TransformerLens ones."""
    code = re.search(r"<!-- analysis -->\n```python\n(.*?)```\n<!-- /analysis -->", HOOKS, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    names = {"model": tiny_model, "vector": make_vector(tiny_model)}
    exec(code, names)
    assert "carries most of it" in capsys.readouterr().out
    assert set(names["left"]) == {"blocks.2.hook_attn_out", "blocks.2.hook_mlp_out"}
    assert all(share > 0 for share in names["left"].values())
    assert not any(point.fwd_hooks for point in tiny_model.hook_dict.values())


def test_the_hooks_of_the_pages_exist_as_they_call_them(tiny_model):
    vector, tokens = make_vector(tiny_model), torch.tensor([[40, 41, 42]])
    ordinary = pl.measure_ordinary_projections(
        tiny_model, vector, questions=["Why?", "When?"], sampling=pl.Sampling(max_new_tokens=4)
    )
    hooks = pl.capping_hooks(vector, layer=1, ceiling=ordinary.quantile(0.99))
    hooks += pl.steering_hooks(vector, layer=1, coefficient=3.0, unit="sigma", ordinary=ordinary)
    hooks += pl.ablation_hooks(vector)
    assert tiny_model.run_with_hooks(tokens, fwd_hooks=hooks).isfinite().all()
