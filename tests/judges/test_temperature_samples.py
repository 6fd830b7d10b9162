"""Responses drawn cool and hot from a tiny random model."""

from persona_lens.judges import sample_temperatures
from persona_lens.models import Sampling

QUESTIONS = ["What is a lamp?", "Who are you?", "Where is the door?"]


def test_each_question_is_answered_once_cool_and_once_hot_with_the_same_random_numbers(tiny_model):
    sampling = Sampling(max_new_tokens=6, temperature=0.7)
    found = sample_temperatures(tiny_model, QUESTIONS, sampling=sampling, hot=3.0)
    assert found.questions == tuple(QUESTIONS)
    assert len(found.cool) == len(found.hot) == 3
    assert found.cool != found.hot
    same = sample_temperatures(tiny_model, QUESTIONS, sampling=sampling, hot=0.7)
    assert same.cool == same.hot == found.cool
