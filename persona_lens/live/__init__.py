"""A conversation that one watches: its tokens coloured by projection, in a notebook and on a page."""

from persona_lens.live.app import start_app
from persona_lens.live.conversation import Addition, ReadConversation, ReadVariant
from persona_lens.live.reading import read_conversation

__all__ = ["Addition", "ReadConversation", "ReadVariant", "read_conversation", "start_app"]
