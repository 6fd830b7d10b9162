"""Judges score how strongly a response shows a trait."""
