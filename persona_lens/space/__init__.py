"""Many characters side by side: the directions in which they differ, and the axis from them to the assistant."""

from __future__ import annotations

from persona_lens.space.answers import RoleAnswers, sample_roles
from persona_lens.space.axis import (
    AxisDistances,
    find_assistant_axis,
    load_assistant_axis,
    measure_axis_distances,
    note_thresholds,
)
from persona_lens.space.components import Components, find_components, match_components
from persona_lens.space.playing import RolePlaying, measure_playing
from persona_lens.space.space import ComponentVariance, PersonaSpace, Placed, find_persona_space

__all__ = [
    "AxisDistances", "ComponentVariance", "Components", "PersonaSpace", "Placed", "RoleAnswers", "RolePlaying",
    "find_assistant_axis", "find_components", "find_persona_space", "load_assistant_axis", "match_components",
    "measure_axis_distances", "measure_playing", "note_thresholds", "sample_roles",
]  # fmt: skip
