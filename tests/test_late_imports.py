import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_importing_the_package_imports_nothing_that_few_sessions_need():
    code = """
import sys
import persona_lens
print([name for name in ("anthropic", "kaleido", "openai", "peft", "plotly", "ray") if name in sys.modules])
"""  # in a process of its own: the tests have imported them all
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
