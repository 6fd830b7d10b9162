"""Long works that a test kills: each ends with files whose bytes are compared, whatever happened on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

import persona_lens as pl
from tests.small_trait import LengthJudge, tiny_trait

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i}. Yes."}]}
    for i in range(48)
]


def load(folder):
    return pl.load_model(folder, dtype="float32", device="cpu")


def make_vector(model, name="loud"):
    directions = torch.randn(model.cfg.n_layers, model.cfg.d_model, generator=torch.Generator().manual_seed(len(name)))
    return pl.PersonaVector(name, pl.describe_model(model), {"response_mean": directions})


def extract(model_folder, out):
    run = pl.Run(pl.ShardStore(out / "runs", {"seed": 0}))
    sampling = pl.Sampling(max_new_tokens=24, rollouts=12, batch_size=8)
    vector = pl.extract_persona_vector(load(model_folder), tiny_trait(), judge="none", sampling=sampling, run=run)
    vector.save(out / "vector.safetensors")


def sweep(model_folder, out):
    model, run = load(model_folder), pl.Run(pl.ShardStore(out / "runs", {"seed": 0}))
    found = pl.sweep_layers(
        model, tiny_trait(), make_vector(model), judge=LengthJudge(), coefficients=(1.0, 2.0, 4.0, 8.0), layers=2,
        sampling=pl.Sampling(max_new_tokens=24, rollouts=6, batch_size=8), run=run,
    )  # fmt: skip
    found.save(out / "sweep.json")


def survey(model_folder, out):
    """Several traits in one store: vector, sweep and confirmation of each."""
    model, run = load(model_folder), pl.Run(pl.ShardStore(out / "runs", {"seed": 0}))
    sampling = pl.Sampling(max_new_tokens=12, rollouts=3, batch_size=8)
    for name in ("loud", "soft", "shrill"):
        vector, own = make_vector(model, name), run.part({"trait": name})
        given = {"judge": LengthJudge(), "sampling": sampling, "run": own}
        swept = pl.sweep_layers(model, tiny_trait(), vector, coefficients=(1.0, 4.0), layers=2, **given)
        choice = pl.evaluation.LayerChoice("given", 1, 2.0, *[pl.statistics.Interval(1.0, 0.0, 2.0)] * 2)
        confirmed = pl.confirm_choice(model, vector, choice, questions=["Why?", "When?"], random_directions=3, **given)
        swept.save(out / f"{name} sweep.json")
        confirmed.save(out / f"{name} confirmation.json")


def train(model_folder, out):
    settings = pl.FinetuneSettings(rank=2, alpha=4, batch_size=2, accumulation=1, warmup_steps=1, max_tokens=64,
                                   learning_rate=1e-3, save_steps=2, dtype="float32")  # fmt: skip
    pl.finetune(model_folder, ROWS, out / "adapter", settings=settings)


def screen(model_folder, out):
    model = load(model_folder)
    settings = pl.screening.ScreenSettings(max_response_tokens=16)
    pl.screen(
        model, ROWS, {"loud": make_vector(model)}, out / "screen", layers={"loud": 1}, settings=settings, shard_rows=2
    )


def judge(model_folder, out):
    """A local judge's scores, kept in a cache."""
    calibration = pl.judges.LikelihoodCalibration(2.0, 0.5, -2.0, -3.0, -1.5, 1, 1, 1, 0)
    plain = pl.judges.LikelihoodJudge(load(model_folder), tiny_trait(), 1, calibration)
    cached = pl.judges.CachedJudge(plain, pl.judges.ScoreCache(out / "scores.sqlite"))
    scores = []
    for at in range(0, 96, 4):
        responses = [f"Answer {i}! " * (1 + i % 5) for i in range(at, at + 4)]
        scores += cached.score(["Why?"] * 4, responses)
    (out / "scores.json").write_text(json.dumps([(one.score, one.coherence) for one in scores]))


def judge_in_batches(model_folder, out):
    """A batch of the Claude API, of which the record alone says what was sent."""
    claude = pl.judges.ClaudeJudge(tiny_trait(), max_retries=0)
    found = claude.score_batch(["Why?"] * 40, [str(i) for i in range(40)], out / "batch.json", poll_seconds=0.02)
    (out / "scores.json").write_text(json.dumps([(one.score, one.coherence) for one in found]))


WORKS = {one.__name__: one for one in (extract, sweep, survey, train, screen, judge, judge_in_batches)}
# The files whose bytes are compared.
RESULTS = {
    "extract": ["vector.safetensors"],
    "sweep": ["sweep.json"],
    "survey": [f"{name} {kind}.json" for name in ("loud", "soft", "shrill") for kind in ("sweep", "confirmation")],
    "train": ["adapter/adapter_model.safetensors", "adapter/persona_lens.json"],
    "screen": ["screen/shards/*.arrow"],
    "judge": ["scores.json"],
    "judge_in_batches": ["scores.json"],
}


def work(name, model_folder, out, env):
    """Do one work in this process, which has been forked for it."""
    os.environ.update(env)
    torch.set_num_threads(1)
    pl.progress(False)
    log = os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    WORKS[name](model_folder, Path(out))


def read_results(name, out):
    """The bytes of a work's results by file."""
    return {str(path.relative_to(out)): path.read_bytes() for one in RESULTS[name] for path in sorted(out.glob(one))}
