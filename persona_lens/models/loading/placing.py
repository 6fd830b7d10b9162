"""Where a model's weights lie and in what form: one device, several, the files themselves; whole or quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.loading.source import DISK, MAP_WORDS

DeviceMap = str | Mapping[str, int | str | torch.device]

_BRIDGE = 'Leave out backend, or pass "bridge".'


@dataclass(frozen=True)
class Placement:
    """Where a model's weights lie and in what form.

    Args:
        device: Of the inputs, and of the weights without a map.
        device_map: What transformers is told; None for one device.
        quantization_config: How the weights are quantised while they are loaded; None leaves them as they are.
        in_files: The weights stay in their files, mapped into memory: the operating system reads what a pass needs and
            drops it again where memory is short.
        places: Where they are put from there, by module; None leaves them all.
    """

    device: torch.device
    device_map: Any = None
    quantization_config: QuantizationConfigMixin | None = None
    in_files: bool = False
    places: Mapping[str, str] | None = None

    @property
    def needs_bridge(self) -> bool:
        """Whether only a bridge can hold weights so placed."""
        return self.in_files or self.device_map is not None or self.quantization_config is not None


def choose_placement(
    device: str | torch.device | None,
    device_map: DeviceMap | None,
    quantization_config: QuantizationConfigMixin | None,
    *,
    backend: str | None,
    adapter: bool,
) -> Placement:
    """Decide where weights go, before any is read.

    Raises:
        InvalidArgumentError: An unknown device; arguments that exclude one another.
        UnsupportedModelError: What the class asked for cannot hold.
    """
    given = {"device_map": device_map, "quantization_config": quantization_config}
    places = None if device_map is None else name_places(device_map)
    for name, value in given.items():
        if value is None:
            continue
        if backend == "hooked":
            rule = f"be None or 'bridge' with {name}: HookedTransformer has plain weights on one device"
            raise UnsupportedModelError.of("backend", rule, backend, _BRIDGE)
        if adapter and (name == "quantization_config" or places is not None):
            rule, hint = "be left out with an adapter, which is merged into plain weights in memory", "Merge it first."
            raise InvalidArgumentError.of(name, rule, type(value).__name__, hint)
    if device_map is None:
        return Placement(find_device(device), None, quantization_config)
    if device is not None:
        raise InvalidArgumentError.of("device", "be left out with device_map, which says where weights go", device)
    if places is not None:
        if quantization_config is not None:
            rule = "be left out with a map over several places, which takes the weights as the files have them"
            raise InvalidArgumentError.of("quantization_config", rule, type(quantization_config).__name__)
        return spread(places)
    if isinstance(device_map, str):
        if device_map not in MAP_WORDS:
            what = f"{', '.join(map(repr, sorted(MAP_WORDS)))}, a mapping, or a device"
            return _place_all(find_device(device_map, "device_map", what), quantization_config)
        return Placement(find_device(None), device_map, quantization_config)
    return _place_all(find_device(next(iter(device_map.values())), "device_map", "devices"), quantization_config)


def spread(places: Mapping[str, str]) -> Placement:
    """Return a placement over several places: the first GPU that is named computes, else the CPU.

    Raises:
        InvalidArgumentError: A GPU that is not there.
    """
    devices = [place for place in places.values() if place not in (DISK, "cpu")]
    n_gpus = torch.cuda.device_count()
    missing = {one for one in devices if torch.device(one).type == "cuda" and (torch.device(one).index or 0) >= n_gpus}
    if missing:
        rule = f"name devices of this machine, which has {n_gpus} GPUs"
        raise InvalidArgumentError.of("device_map", rule, sorted(missing))
    computing = torch.device(devices[0] if devices else "cpu")
    only_disk = set(places.values()) == {DISK}
    return Placement(computing, None, None, in_files=True, places=None if only_disk else places)


def name_places(device_map: DeviceMap) -> dict[str, str] | None:
    """Return a map's places by module, where it names the disk or several; None for one device or a word.

    Raises:
        InvalidArgumentError: No place, or one that torch does not know.
    """
    if isinstance(device_map, str):
        return {"": DISK} if device_map == DISK else None
    if not device_map:
        raise InvalidArgumentError.of("device_map", "name where at least one module goes", dict(device_map))
    places = {module: _name_place(place) for module, place in device_map.items()}
    for place in set(places.values()) - {DISK}:
        if find_device(place, "device_map", "devices or 'disk'").type == "meta":
            raise InvalidArgumentError.of("device_map", "name devices, or 'disk' for what stays in its files", place)
    return places if len(set(places.values())) > 1 or DISK in places.values() else None


def _place_all(device: torch.device, quantization_config: QuantizationConfigMixin | None) -> Placement:
    return Placement(device, {"": device}, quantization_config)


def check_map(device_map: Mapping[str, Any]) -> None:
    """Refuse a map that transformers found for quantised weights, if it offloads or spreads them.

    Raises:
        UnsupportedModelError: It does.
    """
    places = {_name_place(value) for value in device_map.values()}
    if len(places) > 1 or DISK in places:
        rule = "lead quantised weights to one device, where they are computed with"
        hint = "Use fewer bits, or a larger GPU; or plain weights, which may be spread: device_map without a config."
        raise UnsupportedModelError.of("device_map", rule, f"weights on {', '.join(sorted(places))}", hint)


def _name_place(place: Any) -> str:
    """Return one name for each way to write a device: 0, "cuda:0" and "cuda" are one."""
    name = f"cuda:{place}" if isinstance(place, int) else str(place)
    return "cuda:0" if name == "cuda" else name


def check_quantized(backend: str | None, adapter: bool, method: str) -> None:
    """Refuse what a checkpoint that is already quantised cannot be.

    Raises:
        UnsupportedModelError: A HookedTransformer.
        InvalidArgumentError: The base of an adapter.
    """
    if backend == "hooked":
        rule = "be None or 'bridge' for quantised weights, which HookedTransformer cannot hold"
        raise UnsupportedModelError.of("backend", rule, f"{backend} with {method} weights", _BRIDGE)
    if adapter:
        rule = "be left out for quantised weights, as it is merged into plain ones"
        raise InvalidArgumentError.of("adapter", rule, f"one with {method} weights", "Merge it, then quantise.")


def find_device(device: Any, parameter: str = "device", what: str = "None or a device") -> torch.device:
    """Return a device by name; the GPU if there is one without.

    Raises:
        InvalidArgumentError: No such device.
    """
    try:
        return torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        rule = f"be {what} that torch knows, such as 'cpu' or 'cuda:0'"
        raise InvalidArgumentError.of(parameter, rule, device) from error
