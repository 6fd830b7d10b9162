import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_all_public_names_import_nothing_that_few_sessions_need():
    code = """
import sys
import persona_lens
[getattr(persona_lens, name) for name in persona_lens.__all__ if name != "plots"]
print([name for name in ("anthropic", "kaleido", "openai", "peft", "plotly", "ray") if name in sys.modules])
"""  # in a process of its own: the tests have imported them all
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
