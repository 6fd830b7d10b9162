"""Coverage-guided fuzzing of the readers: any bytes give rows, or one error of ours.

By hand, in an environment that has atheris besides the package, for a kind of file and so many seconds:

    pip install atheris
    python tests/fuzz/fuzz_conversations.py jsonl -max_total_time=300
    python tests/fuzz/fuzz_conversations.py parquet -max_total_time=300 FOLDER_OF_FINDS

What it finds lies in the folder it was started in, as ``crash-...``; put it into ``finds/KIND``, where
``test_finds.py`` tries each again. Arrow's own crashes end the process and are found as well.
"""

import gzip
import json
import math
import sys
import tempfile
from pathlib import Path

KINDS = ("jsonl", "json", "parquet", "jsonl.gz", "jsonl.zst")
FINDS = Path(__file__).parent / "finds"


def check_reading(path):
    """Read a file, and see that it gives rows in order, or an error of ours."""
    from persona_lens.conversations import UNREAD, BadRow, ReadLimits, read_conversations
    from persona_lens.errors import PersonaLensError

    for limits in (ReadLimits(), ReadLimits(max_row_bytes=64, max_depth=3, max_ratio=1)):
        try:
            rows = list(read_conversations(path, limits=limits))
        except PersonaLensError:
            continue
        assert [row.index for row in rows] == list(range(len(rows)))
        for row in rows:
            json.dumps(row.detail if isinstance(row, BadRow) else row.messages, ensure_ascii=False).encode()
            assert row is rows[-1] or not isinstance(row, BadRow) or row.reason not in UNREAD


def make_seeds(kind):
    """Return a few good files of a kind, for the fuzzer to change."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def converse(question, answer, **more):
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}

    shared = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    rows = [converse("Why?", "So “be” it.\n", id=[1, -2.5, True]), shared, converse("\\[{", "", x=math.nan), {"a": {}}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "jsonl":
        return [lines, b"\xef\xbb\xbf" + lines[:-1]]
    if kind == "json":
        return [json.dumps(rows).encode(), json.dumps(rows, indent=1, ensure_ascii=False).encode()]
    if kind == "jsonl.gz":
        return [gzip.compress(lines, mtime=0), gzip.compress(lines, mtime=0) * 2]
    sinks = []
    if kind == "jsonl.zst":
        for part in (lines, lines * 20):
            sinks.append(pa.BufferOutputStream())
            with pa.CompressedOutputStream(sinks[-1], "zstd") as file:
                file.write(part)
    else:
        tables = [[converse("Why?", "So.")] * 3, [{"conversations": shared["conversations"], "n": 1}], [{"text": "a"}]]
        for table in tables:
            for options in ({}, {"compression": "none", "use_dictionary": False}):
                sinks.append(pa.BufferOutputStream())
                pq.write_table(pa.Table.from_pylist(table), sinks[-1], store_schema=False, **options)
    return [sink.getvalue().to_pybytes() for sink in sinks]


def main():
    """Fuzz one kind; what stands after it is libFuzzer's."""
    import atheris

    kind, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["persona_lens.conversations"]):
        import persona_lens.conversations  # noqa: F401
    folder = Path(tempfile.mkdtemp())
    seeds = folder / "seeds"
    seeds.mkdir()
    found = [path.read_bytes() for path in sorted((FINDS / kind).glob("*"))]
    for number, seed in enumerate([*make_seeds(kind), *found]):
        (seeds / str(number)).write_bytes(seed)
    path = folder / f"rows.{kind}"

    def try_one(data):
        path.write_bytes(data)
        check_reading(path)

    atheris.Setup([sys.argv[0], *options, str(seeds)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
