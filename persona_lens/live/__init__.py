"""A conversation that one watches: its tokens coloured by projection, in a notebook and on a page."""

from persona_lens.live.app import RunningApp, start_app
from persona_lens.live.conversation import Addition, ReadConversation, ReadVariant
from persona_lens.live.reading import read_conversation
from persona_lens.live.widget import LiveConversation, show

__all__ = [
    "Addition", "LiveConversation", "ReadConversation", "ReadVariant", "RunningApp", "read_conversation", "show",
    "start_app",
]  # fmt: skip
