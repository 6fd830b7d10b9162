"""``python -m persona_lens``: the command, where its script is not on the path."""

from persona_lens.cli import main

if __name__ == "__main__":
    main()
