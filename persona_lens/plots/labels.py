"""Where the labels of a scatter go, so that none lies on another or on a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Directions in which a label is tried, and how far from its point, in pixels; near and to the right or left first.
_ANGLES = (0, 180, 90, 270, 30, 150, 210, 330, 60, 120, 240, 300)
_REACHES = (8.0, 16.0, 28.0, 42.0, 60.0, 80.0, 105.0)
_LETTER, _LINE, _POINT = 6.2, 13.0, 5.0


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(across, 0.0) * max(up, 0.0)


@dataclass(frozen=True)
class Label:
    """A label's box, and the middle of its text from the point, in pixels to the right and up."""

    box: Box
    right: float
    up: float


def place_labels(
    points: Sequence[tuple[float, float]], texts: Sequence[str], width: float, height: float
) -> list[Label]:
    """Find a place for each point's label within an area of so many pixels.

    Points in crowds come first; each label takes the nearest place that is free, or the one that covers least.

    Args:
        points: In pixels from the lower left corner.
        texts: One a point.
        width: Of the area.
        height: Of the area.

    Returns:
        A label each, in the order of the points.

    Example:
        >>> first, second = place_labels([(50.0, 50.0), (52.0, 50.0)], ["one", "two"], 200.0, 100.0)
        >>> first.box.overlap(second.box)
        0.0
    """
    taken = [Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    placed: dict[int, Label] = {}

    def crowd(index: int) -> float:
        return sorted(math.dist(points[index], other) for other in points)[min(3, len(points) - 1)]

    for index in sorted(range(len(points)), key=crowd):
        own, text = taken[index], texts[index]
        best, cost = None, math.inf
        for reach in _REACHES:
            for angle in _ANGLES:
                tried = _put(points[index], text, reach, math.radians(angle))
                box = tried.box
                outside = max(-box.left, 0) + max(box.right - width, 0) + max(-box.bottom, 0) + max(box.top - height, 0)
                covered = sum(box.overlap(other) for other in taken if other is not own)
                if (its_cost := covered + 100 * outside + 0.01 * reach) < cost:
                    best, cost = tried, its_cost
            if cost < 1.5:
                break
        assert best is not None
        placed[index] = best
        taken.append(best.box)
    return [placed[index] for index in range(len(points))]


def _put(point: tuple[float, float], text: str, reach: float, angle: float) -> Label:
    half, tall = _LETTER * len(text) / 2, _LINE / 2
    right = math.cos(angle) * (reach + half)
    up = math.sin(angle) * (reach + tall)
    x, y = point[0] + right, point[1] + up
    return Label(Box(x - half, y - tall, x + half, y + tall), right, up)
