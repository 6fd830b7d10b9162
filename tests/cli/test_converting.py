"""``persona-lens convert``: what comes out is what went in, what has no place is said, what is unclear is asked."""

import json

import pytest
import torch

import persona_lens as pl
from persona_lens.cli.arguments import Format
from persona_lens.vectors.exchange.formats import FORMATS
from tests.cli.test_commands import run
from tests.vectors.exchange.files import D_MODEL, N_LAYERS, as_bytes, make_directions


@pytest.fixture
def calm(tmp_path):
    directions = make_directions()
    directions.to_vector().save(tmp_path / "calm.safetensors")
    return directions


def test_the_command_knows_the_formats_of_the_table():
    assert set(Format.__args__) == set(FORMATS)


@pytest.mark.parametrize("program", sorted(set(FORMATS) - {"persona-lens"}))
def test_a_vector_comes_back_through_each_format(calm, tmp_path, program):
    there = tmp_path / {"gguf": "calm.gguf", "paper": "calm_response_avg_diff.pt"}.get(program, "there")
    done = run("convert", tmp_path / "calm.safetensors", there, "--to", program)
    assert done.status == 0, done.err
    again = tmp_path / "again.gguf"
    said = json.loads(run("convert", there, again, "--from", program, "--json").out)
    found = pl.vectors.read_control_vector(again)
    assert as_bytes(found, found.layers) == as_bytes(calm, said["layers"])
    assert said["layers"] == list(range(N_LAYERS - (program == "paper")))
    assert (said["trait"], said["not_written"]) == ("there" if program == "steering-vectors" else "calm", [0]) or (
        program == "assistant-axis"
    )
    if program == "paper":
        assert "after the final norm" in said["not_read"][str(N_LAYERS - 1)]
        assert "No place there for layer 3" in done.out


def test_what_the_name_does_not_say_is_asked_for(tmp_path):
    torch.save(torch.ones(N_LAYERS, D_MODEL), tmp_path / "rows.pt")
    torch.save({"axis": torch.ones(N_LAYERS, D_MODEL)}, tmp_path / "axis.pt")
    torch.save({1: torch.ones(D_MODEL)}, tmp_path / "by_layer.pt")
    for arguments, says in (
        (("rows.pt", "x.gguf"), "--from assistant-axis"),
        (("axis.pt", "x.pt"), "--to"),
        (("axis.pt", "x.safetensors"), "--model"),
        (("axis.pt", "axis.json"), ".json"),
        (("nowhere.pt", "x.gguf"), "must name an existing"),
        (("by_layer.pt", "x_diff.pt"), "how many layers"),
        (("axis.pt", "axis.pt", "--to", "paper"), "overwritten"),
        (("axis.pt", "x.gguf", "--evaluation", "e.json"), "--evaluation"),
    ):
        paths = [tmp_path / one if "." in one and not one.startswith("-") else one for one in arguments]
        done = run("convert", *paths)
        assert done.status == 2, arguments
        assert says in " ".join(done.err.split()), arguments
        assert len(done.err.splitlines()) < 8
    assert sorted(one.name for one in tmp_path.iterdir()) == ["axis.pt", "by_layer.pt", "rows.pt"]
    assert run("convert", tmp_path / "by_layer.pt", tmp_path / "x.gguf").status == 0


def test_a_foreign_vector_becomes_the_named_models(tmp_path, tiny_folder):
    rows = torch.randn(4, 48)
    torch.save(rows, tmp_path / "evil_response_avg_diff.pt")
    target = tmp_path / "evil.safetensors"
    done = run("convert", tmp_path / "evil_response_avg_diff.pt", target, "--model", tiny_folder("llama"))
    assert done.status == 0, done.err
    vector = pl.PersonaVector.load(target)
    assert (vector.trait, vector.layers, vector.model.n_layers) == ("evil", (0, 1), 3)
    assert torch.equal(vector.direction(1), rows[2])
    torch.save(torch.randn(6, 48), tmp_path / "evil_response_avg_diff.pt")
    done = run("convert", tmp_path / "evil_response_avg_diff.pt", target, "--model", tiny_folder("llama"))
    assert done.status == 2
    assert "fit the directions" in " ".join(done.err.split())


def test_a_trait_of_one_file_says_how_it_was_split(tmp_path):
    content = {
        "instruction": [{"pos": "Shout.", "neg": "Whisper."}],
        "questions": [f"Question {index}?" for index in range(40)],
        "eval_prompt": "{question} {answer}",
    }
    (tmp_path / "loud.json").write_text(json.dumps(content))
    assert run("convert", tmp_path / "loud.json", tmp_path / "out.json", "--trait", "loud").status == 0
    trait = pl.Trait.from_json(tmp_path / "out.json")
    assert (len(trait.extraction_questions), len(trait.evaluation_questions)) == (20, 20)
    assert "loud.json" in trait.origin
    assert "of its 40 questions the first 20 are for extraction" in trait.origin
    (tmp_path / "more.json").write_text(json.dumps(content | {"questions": ["Another?"]}))
    more = pl.Trait.from_paper_json(tmp_path / "loud.json", tmp_path / "more.json")
    assert "more.json with 1 for evaluation" in more.origin
    assert pl.Trait.from_dict(trait.to_dict()) == trait


def test_where_a_trait_comes_from_is_no_part_of_what_it_says(tmp_path):
    import dataclasses

    trait = pl.load_trait("evil")
    assert "origin" not in trait.to_dict()
    assert dataclasses.replace(trait, origin="a file").fingerprint == trait.fingerprint


def test_what_is_read_is_not_written_over_and_what_does_not_apply_is_refused(calm, tmp_path):
    pl.load_trait("evil").to_json(tmp_path / "ex.json")
    pl.load_trait("evil").to_json(tmp_path / "ev.json")
    before = (tmp_path / "ev.json").read_bytes()
    done = run("convert", tmp_path / "ex.json", tmp_path / "ev.json", "--evaluation", tmp_path / "ev.json")
    assert (done.status, (tmp_path / "ev.json").read_bytes()) == (2, before)
    done = run("convert", tmp_path / "ex.json", tmp_path / "new.json", "--to", "gguf")
    assert done.status == 2
    assert "--to" in done.err
    done = run("convert", tmp_path / "calm.safetensors", tmp_path / "copy.safetensors", "--trait", "villain")
    assert done.status == 2
    assert not (tmp_path / "copy.safetensors").exists()
