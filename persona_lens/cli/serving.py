"""``persona-lens app``: the page, served until it is broken off."""

from __future__ import annotations

from persona_lens.cli.arguments import App
from persona_lens.cli.choosing import choose_sampling
from persona_lens.cli.terminal import print_line
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.ordinary import measure_ordinary_projections
from persona_lens.live.app import import_server, start_app
from persona_lens.models.engine.requests import Sampling
from persona_lens.models.loading import EMBEDDED_MODEL, load_model
from persona_lens.monitoring.monitor import PersonaMonitor
from persona_lens.vectors.persona_vector import PersonaVector
from persona_lens.vectors.ready import list_ready_vectors, load_vector


def run(arguments: App) -> int:
    """Load what the page works with, serve it, and say where."""
    import_server()  # before a model is loaded
    vectors = _load_vectors(arguments)
    monitor = None if arguments.monitor is None else PersonaMonitor.load(arguments.monitor)
    layers = None
    if arguments.layer is not None:
        layers = {name: arguments.layer for name, one in vectors.items() if not one.provenance.get("setting")}
    model = load_model(arguments.model)
    ordinary = {}
    if arguments.ordinary:
        print_line("Measuring what is ordinary for each trait")
        ordinary = {name: measure_ordinary_projections(model, one) for name, one in vectors.items()}
    sampling = Sampling(arguments.max_new_tokens, choose_sampling(model).temperature)
    with start_app(
        model, vectors, layers=layers, monitor=monitor, ordinary=ordinary, sampling=sampling,
        host=arguments.host, port=arguments.port,
    ) as app:  # fmt: skip
        if app.warning:
            print_line(app.warning)
        print_line(f"Open {app.url} in a browser; Ctrl-C ends it.")
        app.wait()
    return 0


def _load_vectors(arguments: App) -> dict[str, PersonaVector]:
    """Return the vectors that were asked for, by trait; the ready ones of the embedded model if none was."""
    names = arguments.trait
    if not names and not arguments.vector:
        if arguments.model != EMBEDDED_MODEL:
            rule = f"be given for another model than {EMBEDDED_MODEL}"
            hint = "Make one: `persona-lens extract` or `persona-lens sweep`."
            raise InvalidArgumentError.of("--vector", rule, None, hint)
        names = list_ready_vectors()
    vectors = {name: load_vector(name) for name in names}
    for path in arguments.vector:
        if not path.is_file():
            rule = "be existing files, from `persona-lens extract` or `sweep`"
            raise InvalidArgumentError.of("--vector", rule, str(path))
        vector = PersonaVector.load(path)
        if vector.trait in vectors:
            raise InvalidArgumentError.of("--vector", "be of a trait that no other is of", vector.trait)
        vectors[vector.trait] = vector
    for vector in vectors.values():
        if arguments.layer is None and not vector.provenance.get("setting"):
            rule = f"be given, as the vector of {vector.trait} was tried nowhere"
            hint = f"`persona-lens sweep` finds where to steer; --layer {vector.model.n_layers // 2} is a beginning."
            raise InvalidArgumentError.of("--layer", rule, None, hint)
    return vectors
