"""Traits: what a character trait is, and the bundled ones."""
