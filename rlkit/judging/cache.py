"""Verdicts on disk, so that one trajectory is judged once: by every step, worker and run that shares the file.

One SQLite table, keyed by the judge's fingerprint, the question and the hash of the trajectory. The first answer
stays: a judge that changes its mind would pay two rewards for one text. What a judge could not answer is not kept.
A file that cannot be read or written costs the cache and never the verdict.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any

__all__ = ["Cache"]

log = logging.getLogger(__name__)
Key = tuple[str, str, str]
"""Fingerprint of judge and context, question, trajectory hash."""
BUSY_S = 5.0
_TABLE = """create table if not exists verdicts (
    judge text not null, question text not null, trajectory text not null, answer text not null,
    primary key (judge, question, trajectory)) without rowid"""


class Cache:
    """A dictionary of answers in a file, for many threads and processes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.errors = 0
        """Reads and writes that failed."""
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, key: Key) -> str | None:
        """The answer kept under `key`, or None."""
        query = "select answer from verdicts where judge = ? and question = ? and trajectory = ?"
        row = self._execute(query, key)
        return None if row is None else str(row[0])

    def put(self, key: Key, answer: str) -> None:
        """Keep the answer, unless there is one."""
        self._execute("insert or ignore into verdicts values (?, ?, ?, ?)", (*key, answer))

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _execute(self, statement: str, values: tuple[str, ...]) -> Any:
        """The first row, or None; also where the file fails, which is counted."""
        with self._lock:
            try:
                if self._connection is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    self._connection = sqlite3.connect(self.path, timeout=BUSY_S, check_same_thread=False)
                    self._connection.execute(_TABLE)
                with self._connection:
                    return self._connection.execute(statement, values).fetchone()
            except (sqlite3.Error, OSError, UnicodeError) as error:
                self.errors += 1
                if self.errors == 1:
                    log.warning("judge cache %s: %s; verdicts are asked for again", self.path, error)
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                return None
