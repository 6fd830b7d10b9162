import numpy as np
import torch

from persona_lens.monitoring import GradedProjections

ORDINARY = [[{"role": "user", "content": text}] for text in ("Hi", "Why so?", "A pear?", "Tell me.", "And now?")]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who <b>?"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "Really?"},
]
LAYERS = {"loud": 1, "shy": 2}


def make_graded(vector, layer=1, within=1.0, seed=0, n_questions=20, n_conditions=4):
    """Scores follow the projection inside conditions with the slope asked for, and across them with 10."""
    rng = np.random.default_rng(seed)
    condition = np.repeat(np.arange(n_conditions), n_questions)
    x = rng.normal(size=n_questions * n_conditions)
    y = 40 + 10 * condition + 5 * within * x + rng.normal(size=len(x)) * 2
    x = x + 3 * condition
    return GradedProjections(
        vector.trait, vector.model, layer, torch.tensor(x).float(), torch.tensor(y).float(),
        tuple(f"c{c}" for c in condition), tuple(f"q{i % n_questions}" for i in range(len(x))),
    )  # fmt: skip
