"""Judgements kept on disk by content: a rerun asks no judge twice.

SQLite in write-ahead mode: what was committed survives kill -9, and several processes may read and write at once.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from persona_lens.checking import checked
from persona_lens.errors import FileFormatError
from persona_lens.judges.judgement import IdentifiedJudge, Judgement, check_pairs

# Judged between two commits: what a kill can lose.
_ROWS_AT_ONCE = 64
# Another process may be writing; SQLite waits this long for its turn.
_TIMEOUT_SECONDS = 60.0
_READ_AT_ONCE = 500  # SQLite's old limit is 999 places in a statement


@checked
class ScoreCache:
    """A file of judgements.

    Args:
        path: An SQLite file, made with its folders if missing.

    Raises:
        FileFormatError: The file is no score cache.

    Example:
        >>> import tempfile
        >>> cache = ScoreCache(Path(tempfile.mkdtemp()) / "scores.sqlite")
        >>> key = cache.key("judge", "Why?", "Because.")
        >>> cache.write({key: Judgement(70.0, 90.0)})
        >>> cache.read([key])[key].score
        70.0
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._connect() as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS judgements"
                    " (key TEXT PRIMARY KEY, score REAL, coherence REAL, reason TEXT NOT NULL)"
                )
        except sqlite3.DatabaseError as error:
            rule, hint = "be a score cache or a new file", f"{error}. Choose another."
            raise FileFormatError.of("path", rule, str(self.path), hint) from error

    @staticmethod
    def key(identity: str, question: str, response: str) -> str:
        """Return what a judgement is kept under: a hash of judge, question and response."""
        return hashlib.sha256(json.dumps([identity, question, response]).encode()).hexdigest()

    def read(self, keys: Sequence[str]) -> dict[str, Judgement]:
        """Return the judgements that are there."""
        found: dict[str, Judgement] = {}
        with self._connect() as connection:
            for at in range(0, len(keys), _READ_AT_ONCE):
                some = keys[at : at + _READ_AT_ONCE]
                places = ",".join("?" * len(some))
                rows = connection.execute(
                    f"SELECT key, score, coherence, reason FROM judgements WHERE key IN ({places})", list(some)
                )
                found |= {key: Judgement(score, coherence, reason) for key, score, coherence, reason in rows}
        return found

    def write(self, judgements: dict[str, Judgement]) -> None:
        """Keep judgements, all or none; those that are worth asking for again are left out."""
        rows = [(key, j.score, j.coherence, j.reason) for key, j in judgements.items() if not j.retryable]
        with self._connect() as connection:
            connection.executemany("INSERT OR REPLACE INTO judgements VALUES (?, ?, ?, ?)", rows)

    def __len__(self) -> int:
        with self._connect() as connection:
            return int(connection.execute("SELECT count(*) FROM judgements").fetchone()[0])

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for one transaction. A new one each time, so that threads and forks share nothing."""
        with closing(sqlite3.connect(self.path, timeout=_TIMEOUT_SECONDS)) as connection, connection:
            yield connection


@checked
@dataclass(frozen=True, eq=False)
class CachedJudge:
    """A judge that remembers.

    Args:
        judge: Asked for what is not in the cache.
        cache: Where judgements are kept.
    """

    judge: IdentifiedJudge
    cache: ScoreCache

    @property
    def name(self) -> str:
        """The judge's name."""
        return self.judge.name

    @property
    def identity(self) -> str:
        """The judge's identity."""
        return self.judge.identity

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response to its question, asking the judge only for what is new, and once for equal rows.

        Raises:
            InvalidArgumentError: Lists of unequal length.
        """
        check_pairs(questions, responses)
        keys = [self.cache.key(self.identity, q, r) for q, r in zip(questions, responses, strict=True)]
        found = self.cache.read(sorted(set(keys)))
        missing = list({key: i for i, key in enumerate(keys) if key not in found}.values())
        for at in range(0, len(missing), _ROWS_AT_ONCE):
            chunk = missing[at : at + _ROWS_AT_ONCE]
            judged = self.judge.score([questions[i] for i in chunk], [responses[i] for i in chunk])
            fresh = {keys[i]: judgement for i, judgement in zip(chunk, judged, strict=True)}
            self.cache.write(fresh)
            found |= fresh
        return [found[key] for key in keys]
