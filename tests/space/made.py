"""Role answers whose structure is known."""

import torch

from persona_lens.models import ModelInfo
from persona_lens.space import RoleAnswers

INFO = ModelInfo("made", 2, 24, 64, "float32", "hooked", "f", "none")


def make_answers(spread, assistant, *, n_questions=12, noise=0.1, seed=0):
    """Answers whose means are ``spread``, a row a role, plus what a question adds to all, plus noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    rows = torch.cat([assistant[None], spread])
    means = rows[:, None, None, :] + draw(1, n_questions, 2, 24) + noise * draw(len(rows), n_questions, 2, 24)
    names = ("assistant", *(f"role{i}" for i in range(len(spread))))
    kinds = ("assistant", *("human" if i % 2 else "service" for i in range(len(spread))))
    texts = tuple(tuple((f"{name} says {q}.",) for q in range(n_questions)) for name in names)
    empty = tuple((0,) * n_questions for _ in names)
    return RoleAnswers(INFO, names, kinds, tuple(f"Q{q}?" for q in range(n_questions)), means, texts, empty)


def along(axis, *lengths):
    """Rows that are so many units of one axis."""
    rows = torch.zeros(len(lengths), 24)
    rows[:, axis] = torch.tensor(lengths)
    return rows
