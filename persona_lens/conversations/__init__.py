"""Conversations to train on or to screen, read row by row: a bad row is named and counted, never lost in silence.

Whatever the source, no more than a few hundred rows are in memory at a time, and no row is larger than
:class:`ReadLimits` allows.
"""

from persona_lens.conversations.limits import ReadLimits
from persona_lens.conversations.rows import UNREAD, BadRow, Conversation, count_reasons
from persona_lens.conversations.sources import read_conversations, resolve_source

__all__ = ["UNREAD", "BadRow", "Conversation", "ReadLimits", "count_reasons", "read_conversations", "resolve_source"]
