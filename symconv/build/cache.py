"""The cache of generated code: content-addressed, private to its owner, whole at every moment.

An entry is a directory named by its key.  It is built in a private directory and appears by one rename, its manifest
written last, so that a process that dies or a disk that fills leaves nothing half-made to be found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

from ..errors import BackendError, CacheError

log = logging.getLogger("symconv")

MANIFEST = "manifest.json"
#: Seconds to wait for another process that builds the same entry.
LOCK_TIMEOUT = float(os.environ.get("SYMCONV_LOCK_TIMEOUT", 120))
#: Bytes; the least recently used entries go when the cache grows beyond.
MAX_SIZE = int(os.environ.get("SYMCONV_CACHE_SIZE", 512 * 2**20))
#: Seconds after which a private build directory is taken to be left over from a killed process.
ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """One entry: its key, its directory, what it is, its size in bytes and the time of its last use (seconds)."""

    key: str
    path: Path
    description: str
    size: int
    used: float

    def read(self, name: str) -> str:
        """The text of one of its files."""
        return (self.path / name).read_text(encoding="utf-8")


def cache_directory() -> Path:
    """`$SYMCONV_CACHE_DIR`, or the user's cache directory."""
    configured = os.environ.get("SYMCONV_CACHE_DIR")
    return Path(configured) if configured else Path(platformdirs.user_cache_dir("symconv"))


class Cache:
    """The entries under one directory.

    Args:
        root: the directory; by default `cache_directory()`.  It is made with mode 0700.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_directory()
        self._entries, self._locks, self._private = (self.root / part for part in ("entries", "locks", "building"))

    def get(self, key: str, build: Callable[[Path], None], description: str) -> Entry:
        """The entry for `key`, built if it is not there.

        Args:
            key: from `content_key`.
            build: writes the files of the entry into the directory it is given.
            description: one line for `symconv cache list`.

        Raises:
            CacheError: if the directory is not ours alone, or cannot be written, or another process holds the lock.
            BackendError: if the entry is missing and `SYMCONV_DISABLE_JIT` forbids to build it.
        """
        start = time.perf_counter()
        with _as_cache_error(self.root):
            self.check_owner()
            entry = self.find(key)
            if entry is not None:
                log.info("%s: loaded from cache in %.0f ms", description, 1e3 * (time.perf_counter() - start))
                return entry
            if os.environ.get("SYMCONV_DISABLE_JIT", "0") not in ("", "0"):
                raise BackendError(
                    f"{description} is not in the cache {self.root} and SYMCONV_DISABLE_JIT forbids to build it; "
                    "run the same layer once with it unset"
                )
            self._make_directories()
            with self._lock(key):
                entry = self.find(key) or self._build(key, build, description)
            log.info("%s: built in %.2f s", description, time.perf_counter() - start)
            self.prune(MAX_SIZE, keep=key)
            return entry

    def find(self, key: str) -> Entry | None:
        """The entry for `key` if it is there and whole; its time of last use becomes now."""
        path = self._entries / key
        manifest = self._manifest(path)
        if manifest is None:
            return None
        with contextlib.suppress(OSError):
            os.utime(path / MANIFEST)
        return self._entry(path, manifest)

    def entries(self) -> Iterator[Entry]:
        """All whole entries, the most recently used first."""
        found = []
        for path in self._entries.iterdir() if self._entries.is_dir() else ():
            manifest = self._manifest(path)
            if manifest is not None:
                found.append(self._entry(path, manifest))
        yield from sorted(found, key=lambda entry: entry.used, reverse=True)

    def prune(self, max_size: int, keep: str = "") -> list[Entry]:
        """Remove the least recently used entries until `max_size` bytes are left; also what killed builds left."""
        now = time.time()
        for left in self._private.iterdir() if self._private.is_dir() else ():
            with contextlib.suppress(OSError):
                if now - left.stat().st_mtime > ABANDONED:
                    shutil.rmtree(left)
        removed, total = [], 0
        for entry in self.entries():
            total += entry.size
            if total > max_size and entry.key != keep:
                self._remove(entry.path)
                removed.append(entry)
        return removed

    def clear(self) -> int:
        """Remove every entry, whole or not; the number of entries removed."""
        paths = list(self._entries.iterdir()) if self._entries.is_dir() else []
        for path in paths:
            self._remove(path)
        return len(paths)

    def check_owner(self) -> None:
        """Refuse a directory that somebody else owns or may write to: what it holds is executed."""
        if not self.root.exists() or not hasattr(os, "geteuid"):
            return
        for path in (self.root, self._entries):
            if not path.exists():
                continue
            status = path.stat()
            if status.st_uid != os.geteuid():
                raise CacheError(
                    f"the cache {path} belongs to user {status.st_uid}, not to you ({os.geteuid()}); "
                    "set SYMCONV_CACHE_DIR to a directory of your own"
                )
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise CacheError(f"the cache {path} can be written by others; run chmod go-w {path}")

    # -- Parts ---------------------------------------------------------------------------------------------------

    def _make_directories(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check_owner()
        for directory in (self._entries, self._locks, self._private):
            directory.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        path = self._locks / f"{key}.lock"
        lock = filelock.FileLock(path, timeout=LOCK_TIMEOUT)  # the kernel releases it when its holder dies
        try:
            lock.acquire()
        except filelock.Timeout:
            raise CacheError(
                f"waited {LOCK_TIMEOUT:.0f} s for the lock {path}; another process is building the same kernel, "
                "or hangs while it does"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _build(self, key: str, build: Callable[[Path], None], description: str) -> Entry:
        private = Path(tempfile.mkdtemp(dir=self._private))
        try:
            build(private)
            files = {path.name: _digest(path) for path in sorted(private.iterdir())}
            manifest = {"key": key, "description": description, "files": files}
            _write_synced(private / MANIFEST, json.dumps(manifest, indent=1))
            target = self._entries / key
            self._remove(target)  # a damaged entry, if any: find() refused it
            os.replace(private, target)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        found = self.find(key)
        if found is None:
            raise CacheError(
                f"the entry {self._entries / key} was damaged as soon as it was written; is the disk full?"
            )
        return found

    def _manifest(self, path: Path) -> dict[str, str] | None:
        """The manifest of an entry that is ours and whole, else None."""
        try:
            if hasattr(os, "geteuid") and path.lstat().st_uid != os.geteuid():
                return None
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            whole = manifest["key"] == path.name and all(
                _digest(path / name) == digest for name, digest in manifest["files"].items()
            )
            return {"description": str(manifest["description"])} if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _entry(self, path: Path, manifest: dict[str, str]) -> Entry:
        size = sum(file.stat().st_size for file in path.iterdir())
        return Entry(path.name, path, manifest["description"], size, (path / MANIFEST).stat().st_mtime)

    def _remove(self, path: Path) -> None:
        """Rename away, then delete: a reader sees the whole entry or none."""
        if not path.exists():
            return
        grave = Path(tempfile.mkdtemp(dir=self._private))
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, grave)
        shutil.rmtree(grave, ignore_errors=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _as_cache_error(root: Path) -> Iterator[None]:
    """Turn what the file system refuses into a `CacheError` that names the directory."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        raise CacheError(
            f"the cache {root} cannot be used: {error}; set SYMCONV_CACHE_DIR to a directory that you can write"
        ) from error
