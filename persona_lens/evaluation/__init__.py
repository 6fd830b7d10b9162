"""Conditions and their scores: what steering does, where, and at what cost."""
