"""The command ``persona-lens``, for those who write no Python."""

from persona_lens.cli.main import main

__all__ = ["main"]
