"""Screening by several processes with a template that writes the date; here they are this one."""

import datetime
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens import distributed
from persona_lens.errors import DatedTemplateWarning
from persona_lens.models.loading import ModelSource
from persona_lens.models.loading.source import find_anywhere
from persona_lens.screening import RayWorkers
from tests.screening.test_screen import make_rows
from tests.tiny import CHATML, make_hf_model, make_tokenizer


class Here:
    def compute_each(self, pieces):
        return (piece() for piece in pieces)


@contextmanager
def start_here(workers):
    yield Here()


def test_the_day_is_fixed_for_all_said_where_it_is_seen_and_the_model_is_held_once(tmp_path, monkeypatch):
    make_hf_model("llama").save_pretrained(tmp_path / "dated")
    make_tokenizer(template="{{ strftime_now('%Y') }}" + CHATML).save_pretrained(tmp_path / "dated")
    monkeypatch.setattr(distributed, "_loaded", {})
    monkeypatch.setattr(RayWorkers, "started", start_here)
    folder = str(tmp_path / "dated")
    source = ModelSource(find_anywhere(folder), dtype="float32")
    with pytest.warns(DatedTemplateWarning):
        info = pl.describe_model(distributed.load_once(source))  # as a worker does, whose warnings nobody sees
    vector = pl.PersonaVector("loud", info, {"response_mean": torch.ones(3, 48)})
    with pytest.warns(DatedTemplateWarning, match="Today's was fixed"):
        found = pl.screening.screen_on_ray(
            folder, make_rows(4), {"loud": vector}, tmp_path / "out", layers={"loud": 1},
            workers=RayWorkers(1, dtype="float32"),
        )  # fmt: skip
    assert found.counts == {"scored": 4}
    (held,) = distributed._loaded
    assert held == replace(source, template_arguments=f'{{"strftime_now": "{datetime.date.today()}"}}')
