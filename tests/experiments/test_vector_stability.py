"""What is said of a vector's stability is what its halves' cosines say."""

from experiments.results.vector_stability import Stability, VectorStability, stability_to_markdown
from persona_lens.reproduction.layer_sweep import JudgeNote


def make(*found):
    config = {"model": {"name": "small", "n_layers": 5}}
    return VectorStability(config=config, trait="loud", judge=JudgeNote("a judge"), found=found)


RESULT = make(
    Stability("sampled, 1 response", 10, 4, (0.1, 0.2, 0.8, 0.3, 0.4)),
    Stability("sampled, 2 responses", 20, 9, (0.8, 0.9, 0.79, 0.81, 0.4)),
    Stability("written answers", 10, 10, (0.9,) * 5),
)


def test_layers_count_from_the_goal_on_and_runs_of_them_are_ranges():
    assert RESULT.found[1].list_layers() == [0, 1, 3]
    assert "| loud | sampled, 2 responses | 9 of 20 | 0.40 to 0.90 | 0–1, 3 |" in stability_to_markdown([RESULT])
    assert "| loud | written answers | 10 of 10 | 0.90 to 0.90 | 0–4 |" in stability_to_markdown([RESULT])


def test_the_title_compares_the_least_and_the_most_sampled_vector_with_the_written_one():
    assert RESULT.say_finding() == (
        "loud: halves agree to 0.8 at 1 of 5 layers (sampled, 1 response, 4 pairs), 3 of 5 layers (sampled, 2 "
        "responses, 9 pairs), 5 of 5 layers (written answers, 10 pairs)"
    )


def test_a_vector_without_pairs_in_one_half_has_no_layer():
    found = make(Stability("sampled, 1 response", 10, 0, ()))
    assert "| loud | sampled, 1 response | 0 of 10 | – | none |" in stability_to_markdown([found])
    assert "at 0 of 5 layers (sampled, 1 response, 0 pairs)" in found.say_finding()
    assert len(found.plot().data) == 1
