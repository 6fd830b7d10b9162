"""Conversations as token ids, with exact spans."""
