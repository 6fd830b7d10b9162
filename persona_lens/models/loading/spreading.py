"""Models larger than one device: weights lie where there is room, and come to the one device that computes.

Accelerate's own dispatch moves weights in and out module by module and leaves them on ``meta`` meanwhile, which
TransformerBridge refuses, as it reads weights beside the modules' calls. Here they stay tensors all the time: mapped
from their files, in the CPU's memory or on another GPU. A block is copied to the computing device while it runs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.loading.hugging_face import find_blocks
from persona_lens.models.loading.source import DISK

_WRAPPED = "_original_component."
# Of a device's free memory, for activations and the key/value cache.
_LEFT_FREE = 0.2


def spread_weights(bridge: Any, places: Mapping[str, str], device: torch.device) -> None:
    """Put a bridge's weights, mapped from their files, where a map says.

    Args:
        bridge: A TransformerBridge on the CPU.
        places: By the Hugging Face model's module names, a device or ``disk``; the longest name that fits counts.
        device: The one that computes.

    Raises:
        InvalidArgumentError: The map names no place for a weight; or, where a GPU computes, one elsewhere for a weight
            outside the blocks, or several for a block.
    """
    named = {name.replace(_WRAPPED, ""): weight for name, weight in bridge.original_model.named_parameters()}
    found = {id(weight): _find_place(name, places) for name, weight in named.items()}
    at_home = str(device)
    if device.type != "cpu":
        _check_places(bridge, found, at_home)
    with torch.no_grad():
        for weight in bridge.parameters():
            place = found.get(id(weight), at_home)  # what the bridge made itself lies where it is computed with
            if place != DISK:
                weight.data = weight.data.clone() if place == "cpu" else weight.data.to(place)
        for module in bridge.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
    bridge.cfg.device = at_home
    if device.type != "cpu":
        for block in bridge.blocks:
            if any(weight.device != device for weight in block.parameters()):
                BlockFetcher(block.original_component, device).attach()


class BlockFetcher:
    """Copies a block's weights to the device that computes, for as long as it runs.

    Args:
        block: A Hugging Face block; its weights may lie anywhere.
        device: The one that computes.
    """

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self._block, self._device = block, device
        self._stored: list[tuple[nn.Parameter, Tensor]] = []
        self._n_running, self._lock = 0, threading.Lock()

    def attach(self) -> None:
        """Do so from now on, whoever calls the block and however it ends; gradients that come back are refused."""
        self._block.register_forward_pre_hook(self._fetch)
        self._block.register_forward_hook(self._release, always_call=True)

    def _fetch(self, module: nn.Module, given: Any) -> None:
        with self._lock:
            self._n_running += 1
            if self._n_running == 1:
                self._stored = [(weight, weight.data) for weight in module.parameters()]
                for weight, stored in self._stored:
                    weight.data = stored.to(self._device, copy=True)

    def _release(self, module: nn.Module, given: Any, output: Any) -> None:
        # Once gradients come back, the weights lie elsewhere again: torch would only say that devices differ.
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.requires_grad:
            first.register_hook(_stop_gradient)
        with self._lock:
            self._n_running -= 1
            if self._n_running == 0:
                for weight, stored in self._stored:
                    weight.data = stored
                self._stored = []


def refuse_gradients(got: str) -> NoReturn:
    """Say that gradients cannot pass where weights are only copied to the device that computes.

    Raises:
        UnsupportedModelError: Always.
    """
    rule = "keep the weights of every block that gradients pass on the device that computes"
    hint = "Use a device that holds the model, or a map over 'cpu' and 'disk' alone, where the CPU computes."
    raise UnsupportedModelError.of("device_map", rule, got, hint)


def _stop_gradient(gradient: Tensor) -> NoReturn:
    refuse_gradients("gradients for a block that lies elsewhere")


def count_bytes(config: Any, dtype: torch.dtype) -> tuple[str, list[int], int]:
    """Return the name of a model's list of blocks, the bytes of each, and those of all else; no weights are read.

    Args:
        config: The Hugging Face configuration.
        dtype: Of the weights.
    """
    text = config.get_text_config()
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(text)
    found = find_blocks(model)
    stem = next(name for name, module in model.named_modules() if module is found)
    blocks = [sum(weight.numel() for weight in block.parameters()) for block in found]
    whole = sum(weight.numel() for weight in model.parameters())
    return stem, [one * dtype.itemsize for one in blocks], (whole - sum(blocks)) * dtype.itemsize


def measure_rooms() -> dict[str, int]:
    """Return the bytes that weights may take on each device, the one that computes first; the CPU's memory last."""
    rooms = {f"cuda:{index}": torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())}
    rooms["cpu"] = read_available_memory()
    return {name: int(free * (1 - _LEFT_FREE)) for name, free in rooms.items()}


def read_available_memory() -> int:
    """Return bytes that can be had without swapping, or, where the system does not tell, all that there are."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            told = next(line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1024 * int(told.split()[1])


def choose_places(blocks: Sequence[int], outside: int, rooms: Mapping[str, int]) -> list[str] | None:
    """Choose where each block lies: the computing device is filled first, then the others in turn, then the disk.

    Args:
        blocks: Bytes of each.
        outside: Bytes of the embeddings and of all else outside the blocks, which the computing device keeps.
        rooms: Bytes that there is room for, by device, the computing one first.

    Returns:
        A place for each block; None where the computing device holds the whole model.

    Raises:
        InvalidArgumentError: The computing device has no room for what it must keep: all outside the blocks, and a copy
            of the largest block.

    Example:
        >>> choose_places([2, 2, 2, 2, 2], 1, {"cuda:0": 6, "cpu": 3})
        ['cuda:0', 'cpu', 'disk', 'disk', 'disk']
    """
    (device, room), *others = rooms.items()
    if sum(blocks) + outside <= room:
        return None
    # On a CPU nothing is copied: a block is computed with where it is mapped.
    kept = outside + (0 if device == "cpu" else max(blocks))
    if kept > room:
        rule = f"be 'disk' for a model whose embeddings and largest block take {kept / 1e9:.1f} GB"
        raise InvalidArgumentError.of("device_map", rule, f"{room / 1e9:.1f} GB free on {device}")
    left = [(device, room - kept), *others]
    places: list[str] = []
    for size in blocks:
        while left and left[0][1] < size:  # blocks stay in their order
            left.pop(0)
        if left:
            left[0] = (left[0][0], left[0][1] - size)
        places.append(left[0][0] if left else DISK)
    return places


def _find_place(name: str, places: Mapping[str, str]) -> str:
    fitting = [one for one in places if not one or name == one or name.startswith(f"{one}.")]
    if not fitting:
        hint = 'The key "" names a place for all that is named nowhere.'
        raise InvalidArgumentError.of("device_map", f"name a place for every weight, {name} too", sorted(places), hint)
    return places[max(fitting, key=len)]


def _check_places(bridge: Any, found: Mapping[int, str], home: str) -> None:
    """Refuse places that nothing is fetched from."""
    blocks = [[id(weight) for weight in block.parameters()] for block in bridge.blocks]
    in_blocks = {weight for block in blocks for weight in block}
    hint = f"Where a GPU computes, whole blocks lie elsewhere and come to {home} while they run."
    outside = {place for weight, place in found.items() if weight not in in_blocks}
    if outside - {home}:
        rule = f"keep embeddings, final norm and unembedding on the first GPU that it names, {home}"
        raise InvalidArgumentError.of("device_map", rule, f"some on {', '.join(sorted(outside - {home}))}", hint)
    for layer, block in enumerate(blocks):
        places = {found[weight] for weight in block if weight in found}
        if len(places) > 1:
            rule = f"keep each block in one place, that of layer {layer} too"
            raise InvalidArgumentError.of("device_map", rule, f"one on {', '.join(sorted(places))}", hint)
