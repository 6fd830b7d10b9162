"""What is done to the residual stream: one value, from vectors to hooks, ``with`` blocks, sampling and training."""

from persona_lens.interventions.from_vectors import Layers, ablate, cap, steer
from persona_lens.interventions.hooks import (
    ablation_hooks,
    capping_hooks,
    hooked,
    intervention_hooks,
    steering,
    steering_hooks,
)
from persona_lens.models.hooks.intervention import NOTHING, Intervention, Step
from persona_lens.models.hooks.points import HookFn, HookPair
from persona_lens.models.hooks.positions import Positions

__all__ = [
    "NOTHING", "HookFn", "HookPair", "Intervention", "Layers", "Positions", "Step", "ablate", "ablation_hooks", "cap",
    "capping_hooks", "hooked", "intervention_hooks", "steer", "steering", "steering_hooks",
]  # fmt: skip
