"""``persona-lens app``: the page, served until it is broken off."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

from persona_lens.cli.arguments import App
from persona_lens.cli.choosing import choose_sampling, find_ways, load
from persona_lens.cli.terminal import print_line
from persona_lens.evaluation.ordinary import measure_ordinary_projections
from persona_lens.live.app import import_server, listen, serve
from persona_lens.live.serving.setup import Setup
from persona_lens.models.engine.requests import Sampling
from persona_lens.monitoring.monitor import PersonaMonitor


def run(arguments: App) -> int:
    """Load what the page works with, serve it, and say where."""
    import_server()  # before a model is loaded, as all that can be wrong
    ways = find_ways(arguments)
    vectors = {trait: way.vector for trait, way in ways.items()}
    layers = {trait: way.layer for trait, way in ways.items()}
    monitor = None if arguments.monitor is None else PersonaMonitor.load(arguments.monitor)
    sampling = Sampling(arguments.max_new_tokens)
    with closing(listen(arguments.host, arguments.port)) as listener:
        model = load(arguments)
        sampling = replace(sampling, temperature=choose_sampling(model).temperature)
        setup = Setup.of(model, vectors, layers, monitor, {}, sampling)  # before what takes minutes
        if arguments.ordinary:
            print_line("Measuring what is ordinary for each trait")
            ordinary = {name: measure_ordinary_projections(model, one) for name, one in vectors.items()}
            setup = replace(setup, ordinary=ordinary)
        with serve(setup, arguments.host, listener) as app:
            if app.warning:
                print_line(app.warning)
            print_line(f"Open {app.url} in a browser; Ctrl-C ends it.")
            app.wait()
    return 0
