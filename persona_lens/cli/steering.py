"""``persona-lens steer``: one question, answered as the model is and steered."""

from __future__ import annotations

import sys

from persona_lens.cli.arguments import Steer
from persona_lens.cli.choosing import Way, choose_sampling, find_way, load
from persona_lens.cli.terminal import print_json, print_nothing
from persona_lens.errors import InvalidArgumentError
from persona_lens.interventions.hooks import steering
from persona_lens.models.engine.answers import ask
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.hooked_model import HookedModel


def run(arguments: Steer) -> int:
    """Print both answers as they come."""
    if not arguments.question.strip():
        raise InvalidArgumentError.of("QUESTION", "hold some text", arguments.question)
    way = find_way(arguments.trait, arguments.vector, arguments.layer, arguments.coefficient)
    model = load(arguments)
    way.vector.check_model(model)
    say = print_nothing if arguments.json else print
    like = choose_sampling(model)
    sampling = Sampling(arguments.max_new_tokens, like.temperature, seed=arguments.seed)
    stream = None if arguments.json else sys.stdout
    say("unsteered:")
    plain = ask(model, arguments.question, system=arguments.system, sampling=sampling, stream=stream)
    say(f"\nsteered ({way.vector.trait}, layer {way.layer} × {way.coefficient:.3g}):")
    steered = _ask_steered(model, way, arguments, sampling)
    if arguments.json:
        print_json(
            {
                "question": arguments.question, "trait": way.vector.trait, "layer": way.layer,
                "coefficient": way.coefficient, "unsteered": plain, "steered": steered,
            }
        )  # fmt: skip
    return 0


def _ask_steered(model: HookedModel, way: Way, arguments: Steer, sampling: Sampling) -> str:
    stream = None if arguments.json else sys.stdout
    with steering(model, way.vector, layer=way.layer, coefficient=way.coefficient, positions="response"):
        return ask(model, arguments.question, system=arguments.system, sampling=sampling, stream=stream)
