"""What is done to activations: one value, from vectors and heads to hooks, ``with`` blocks, sampling and training."""

from persona_lens.interventions.from_vectors import Layers, ablate, ablate_span, cap, rotate, steer
from persona_lens.interventions.gating import gate
from persona_lens.interventions.heads import shift_heads
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
from persona_lens.models.hooks.sites import Site
from persona_lens.models.hooks.windows import Window

__all__ = [
    "NOTHING", "HookFn", "HookPair", "Intervention", "Layers", "Positions", "Site", "Step", "Window", "ablate",
    "ablate_span", "ablation_hooks", "cap", "capping_hooks", "gate", "hooked", "intervention_hooks", "rotate",
    "shift_heads", "steer", "steering", "steering_hooks",
]  # fmt: skip
