"""A read conversation as HTML that needs neither a kernel nor a network."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import TYPE_CHECKING

from persona_lens.live.payload import describe_additions, pack_conversation
from persona_lens.records import format_table

if TYPE_CHECKING:
    from persona_lens.live.conversation import ReadConversation

_MODULE = files("persona_lens") / "live" / "static" / "conversation.js"


def read_module() -> str:
    """Return the source of the module that draws a conversation."""
    return _MODULE.read_text(encoding="utf-8")


def write_static(read: ReadConversation, key: str | None = None) -> str:
    """Return an element with the conversation, the module that draws it, and a table for readers that run no scripts.

    Model text is escaped in the table; in the script it is JSON without ``<``, which the module sets as text.

    Args:
        read: What was read.
        key: By which a kernel finds the element; a hash of the content if left out.
    """
    packed = json.dumps(pack_conversation(read), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    key = key or hashlib.sha256(packed.encode()).hexdigest()[:12]
    return (
        f'<div data-persona-lens="{key}">{_write_table(read)}<script type="application/json">{packed}</script></div>'
        f'<script type="module">{read_module()}\nshowPages("{key}");</script>'
    )


def _write_table(read: ReadConversation) -> str:
    """Write each message with its mean projections at one layer."""
    layer = read.model.n_layers // 2 if read.layer is None else read.layer
    rows = []
    for variant in read.variants:
        additions = describe_additions(variant)
        for turn, role in enumerate(read.roles):
            chosen = [at for at, whose in enumerate(variant.turns) if whose == turn]
            if chosen:
                means = variant.projections[:, layer, chosen].mean(dim=-1).tolist()
                text = "".join(variant.texts[at] for at in chosen)
                said = f"{role}, steered: {additions[turn]}" if turn in additions else role
                rows.append((f"{variant.coefficient:g}", said, text, *(f"{mean:.2f}" for mean in means)))
    head = ("coefficient", "turn", "text", *read.traits)
    return format_table(f"Mean projections of {read.model.name}'s tokens at layer {layer}", rows, head)
