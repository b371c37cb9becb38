"""The cache of generated code: content-addressed, private to its owner, whole at every moment.

An entry is a directory named by its key.  It is built in a private directory and appears by one rename, so that a
process that dies or a disk that fills leaves nothing half-made to be found.  Its manifest holds the digest of every
file; an entry that does not match it is built again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

from ..errors import BackendError, CacheError
from .environment import building_is_forbidden, setting

log = logging.getLogger("symconv")

MANIFEST = "manifest.json"
#: Seconds to wait for another process that builds the same entry, unless `$SYMCONV_LOCK_TIMEOUT` says otherwise.
LOCK_TIMEOUT = 120.0
#: Bytes, unless `$SYMCONV_CACHE_SIZE` says otherwise; the least recently used entries go when the cache grows beyond.
MAX_SIZE = 512.0 * 2**20
#: All entries are measured anew after so many builds.
MEASURE_AFTER = 256
#: What is pruned to, as a part of what is allowed.
ROOM = 0.9
#: So many sources that did not compile are kept.
KEPT_FAILURES = 16
#: Flags to open a file: not through a link, not waiting on a pipe.
_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
#: Seconds after which a private build directory is taken to be left over from a killed process.
ABANDONED = 3600.0


@dataclass(frozen=True)
class Entry:
    """One entry: its key, its directory, what it is, its size in bytes and the time of its last use (seconds).

    `files` holds the contents whose digests were checked, so that what is loaded is what was checked, even if another
    process removes the entry meanwhile.  The entries of a list are not opened and carry none.
    """

    key: str
    path: Path
    description: str
    size: int
    used: float
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def read(self, name: str) -> str:
        """The text of one of its files."""
        if name not in self.files:
            raise CacheError(f"the cache entry {self.path} holds no {name}; run `symconv cache clear`")
        return self.files[name].decode()

    def path_of(self, name: str) -> Path:
        """The path of one of its files, for a shared object, which the system loads by path.

        Its content was checked when the entry was found; since then only its owner can have changed it.  If another
        process removes the entry before the file is loaded, that is an error; afterwards it does no harm.
        """
        if name not in self.files:
            raise CacheError(f"the cache entry {self.path} holds no {name}; run `symconv cache clear`")
        return self.path / name


def cache_directory() -> Path:
    """`$SYMCONV_CACHE_DIR`, or the user's cache directory."""
    configured = os.environ.get("SYMCONV_CACHE_DIR")
    return Path(os.path.expanduser(configured) if configured else platformdirs.user_cache_dir("symconv"))


class Cache:
    """The entries under one directory.

    Args:
        root: the directory; by default `cache_directory()`.  It is made with mode 0700.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_directory()
        parts = ("entries", "locks", "building", "failed")
        self._entries, self._locks, self._private, self._failed = (self.root / part for part in parts)
        self._size = self.root / "size"

    def get(self, key: str, build: Callable[[Path], None], description: str, level: int = logging.INFO) -> Entry:
        """The entry for `key`, built if it is not there.

        Args:
            key: from `content_key`.
            build: writes the files of the entry into the directory it is given.
            description: one line for `symconv cache list`.
            level: of the line in the log.

        Raises:
            CacheError: if the directory is not ours alone, or cannot be written, or another process holds the lock.
            BackendError: if there is no entry to be had and `SYMCONV_DISABLE_JIT` forbids to build one.
        """
        try:
            with _as_cache_error(self.root):
                return self._get(key, build, description, level)
        except CacheError as error:
            if building_is_forbidden():  # the caller must not take an unusable cache as leave to build without one
                raise BackendError(f"{error}; SYMCONV_DISABLE_JIT forbids to build {description}") from error
            raise

    def find(self, key: str) -> Entry | None:
        """The entry for `key` if it is there, ours and whole; its time of last use becomes now."""
        entry = self._load(self._entries / key, key)
        if entry is not None:
            with contextlib.suppress(OSError):
                os.utime(entry.path / MANIFEST)
        return entry

    def entries(self) -> list[Entry]:
        """All entries, the most recently used first; those that will be built again are described as damaged."""
        with _as_cache_error(self.root):
            return [self._listed(*measured) for measured in self._measured()]

    def prune(self, max_size: float, keep: str = "") -> list[Entry]:
        """Remove the least recently used entries until `max_size` bytes are left; also what killed builds left."""
        with _as_cache_error(self.root):
            self.check_owner()
            self._sweep()
            removed, total, left = [], 0, 0
            for used, size, path in self._measured():
                total += size
                if total > max_size and path.name != keep:
                    removed.append(self._listed(used, size, path))
                    self._remove(path)
                else:
                    left += size
            self._write_size(left)
            return removed

    def clear(self) -> int:
        """Remove every entry, whole or not; the number of entries removed."""
        with _as_cache_error(self.root):
            self.check_owner()
            self._sweep()
            paths = list(_children(self._entries))
            for path in paths:
                self._remove(path)
            self._size.unlink(missing_ok=True)
            for path in _children(self._failed):
                _delete(path)
            return len(paths)

    def keep_failed(self, name: str, text: str) -> Path:
        """Leave a source that does not compile where its user can look at it; the latest few stay."""
        with _as_cache_error(self.root):
            self._make_directories()
            self._failed.mkdir(mode=0o700, exist_ok=True)
            self.check_owner()
            stem, dot, suffix = os.path.basename(name).rpartition(".")
            path = self._failed / f"{stem}-{_digest(text.encode())[:12]}{dot}{suffix}"
            private = self._private / secrets.token_hex(8)
            try:
                private.write_text(text, encoding="utf-8")
                private.chmod(0o600)
                os.replace(private, path)
            finally:
                private.unlink(missing_ok=True)
            for old in sorted(_children(self._failed), key=_changed, reverse=True)[KEPT_FAILURES:]:
                _delete(old)
            return path

    def check_owner(self) -> None:
        """Refuse a directory that somebody else owns or may write to: what it holds is executed."""
        with _as_cache_error(self.root):
            for path in (self.root, self._entries, self._locks, self._private, self._failed):
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISLNK(status.st_mode) and path == self.root:
                        if hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid()):
                            raise CacheError(f"the cache {path} is a symbolic link of user {status.st_uid}, not yours")
                        status = path.stat()
                    _check_ours(path, status)

    # -- Parts ---------------------------------------------------------------------------------------------------

    def _get(self, key: str, build: Callable[[Path], None], description: str, level: int) -> Entry:
        start = time.perf_counter()
        self.check_owner()
        entry, built = self.find(key), False
        if entry is None:
            if building_is_forbidden():
                raise BackendError(
                    f"{description} is not in the cache {self.root} and SYMCONV_DISABLE_JIT forbids to build it; "
                    "run the same layer once with it unset"
                )
            max_size = setting("SYMCONV_CACHE_SIZE", MAX_SIZE, CacheError)
            self._make_directories()
            with self._lock(key):
                entry = self.find(key)
                if entry is None:
                    entry, built = self._build(key, build, description), True
        seconds = time.perf_counter() - start
        if not built:
            log.log(level, "%s: loaded from cache in %.1f ms", description, 1e3 * seconds)
            return entry
        log.log(level, "%s: built in %.2f s", description, seconds)
        with contextlib.suppress(OSError):  # the entry is built, whatever else is wrong with the directory
            if not self._fits(entry.size, max_size):  # with room for more, or the next build would measure again
                self.prune(ROOM * max_size, keep=key)
        return entry

    # The size of the cache is the sum over the lines of one file: the total when all entries were last measured, then
    # what each build added.  Lines are appended whole, so no lock is needed.  What is lost when two processes meet, or
    # counted twice when an entry is replaced, is put right when all is measured again.

    def _fits(self, added: int, max_size: float) -> bool:
        """Count an entry; whether nothing speaks for measuring all of them, which takes long where there are many."""
        self._sweep()
        flags = os.O_WRONLY | os.O_APPEND | _CAREFUL
        try:
            with open(self._size, "ab", opener=lambda name, mode: os.open(name, flags)) as file:
                file.write(b"+%020d\n" % added)
            content = _read_own(self._size)
        except OSError:
            return False
        whole = re.fullmatch(rb"=\d{20}\n(\+\d{20}\n)*", content)
        return (
            bool(whole)
            and content.count(b"+") <= MEASURE_AFTER
            and sum(map(int, re.findall(rb"\d+", content))) <= max_size
        )

    def _write_size(self, size: int) -> None:
        private = self._private / secrets.token_hex(8)
        with contextlib.suppress(OSError):  # without the file all entries are measured
            self._size.unlink(missing_ok=True)
            try:
                private.touch(mode=0o600)
                private.write_bytes(b"=%020d\n" % size)
                os.replace(private, self._size)
            finally:
                private.unlink(missing_ok=True)

    def _make_directories(self) -> None:
        # The parents too are made private, whatever the umask: who may write there can put another cache in place.
        for directory in (*reversed(self.root.parents), self.root, self._entries, self._locks, self._private):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.check_owner()

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Spare two processes the same work.  Correctness rests on the renames, not on the lock."""
        path = self._locks / f"{key[:2]}.lock"  # a few hundred names, or every kernel ever built would leave a file
        timeout = setting("SYMCONV_LOCK_TIMEOUT", LOCK_TIMEOUT, CacheError)
        lock = filelock.FileLock(path, timeout=timeout, mode=0o600)  # the system releases it when its holder dies
        try:
            lock.acquire()
        except filelock.Timeout:
            raise CacheError(
                f"waited {timeout:g} s for the lock {path}; another process is building, or hangs while it does; "
                "end it, or set SYMCONV_LOCK_TIMEOUT to wait longer"
            ) from None
        except NotImplementedError as error:
            raise CacheError(
                f"the file system of the cache {self.root} has no locks; set SYMCONV_CACHE_DIR to a local directory"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _build(self, key: str, build: Callable[[Path], None], description: str) -> Entry:
        private, target = Path(tempfile.mkdtemp(dir=self._private)), self._entries / key
        try:
            build(private)
            files = {path.name: _digest(path.read_bytes()) for path in sorted(private.iterdir())}
            manifest = {"key": key, "description": description, "files": files}
            (private / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for path in private.iterdir():
                path.chmod(0o600)  # whatever the umask: a file that others may write is refused
            entry = self._load(private, key)
            if entry is None:
                raise CacheError(f"what was written to {private} does not read back; is the disk full?")
            try:
                self._remove(target)  # a damaged entry, if any: find() refused it
                os.replace(private, target)
            except OSError:
                if self.find(key) is None:  # where locks do not reach, across machines, another one may be first
                    raise
        finally:
            shutil.rmtree(private, ignore_errors=True)
        return dataclasses.replace(entry, path=target)

    def _load(self, path: Path, key: str) -> Entry | None:
        """The entry for `key` in the directory `path`, with its files, if all of it is ours and whole."""
        try:
            _check_ours(path, path.lstat())
            content = _read_own(path / MANIFEST)
            manifest = json.loads(content)
            if manifest["key"] != key:
                return None
            files: dict[str, bytes] = {}
            for name, digest in manifest["files"].items():
                if os.path.basename(name) != name:  # a path would lead out of the entry
                    return None
                files[name] = _read_own(path / name)
                if _digest(files[name]) != digest:
                    return None
            size = len(content) + sum(map(len, files.values()))
            return Entry(key, path, str(manifest["description"]), size, time.time(), files)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    def _measured(self) -> list[tuple[float, int, Path]]:
        """The time of last use, the size and the directory of every entry, the most recently used first."""
        found = []
        for path in _children(self._entries):
            with contextlib.suppress(OSError):  # removed by another process, or not a directory
                status = {file.name: file.lstat() for file in path.iterdir()}
                used = status[MANIFEST] if MANIFEST in status else path.lstat()
                found.append((used.st_mtime, sum(each.st_size for each in status.values()), path))
        return sorted(found, reverse=True)

    def _listed(self, used: float, size: int, path: Path) -> Entry:
        try:
            description = str(json.loads(_read_own(path / MANIFEST))["description"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            description = "damaged"
        return Entry(path.name, path, description, size, used)

    def _sweep(self) -> None:
        """Delete what killed processes left in the private directory."""
        for left in _children(self._private):
            with contextlib.suppress(OSError):
                if time.time() - left.lstat().st_mtime > ABANDONED:
                    _delete(left)

    def _remove(self, path: Path) -> None:
        """Rename away, then delete: a reader sees the whole entry or none."""
        grave = self._private / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
            self._private.mkdir(mode=0o700, exist_ok=True)
            os.replace(path, grave)
            _delete(grave)


def _check_ours(path: Path, status: os.stat_result) -> None:
    if not hasattr(os, "geteuid"):
        return
    if stat.S_ISLNK(status.st_mode):
        raise CacheError(f"{path} in the cache is a symbolic link; remove it")
    if status.st_uid != os.geteuid():
        raise CacheError(
            f"the cache {path} belongs to user {status.st_uid}, not to you ({os.geteuid()}); "
            "set SYMCONV_CACHE_DIR to a directory of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(f"the cache {path} can be written by others; run chmod go-w {path}")


def _read_own(path: Path) -> bytes:
    """The content of a file that is ours alone.  The open file is checked: nobody can swap it after that."""
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | _CAREFUL)) as file:
        _check_ours(path, os.fstat(file.fileno()))
        return file.read()


def _children(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield from directory.iterdir()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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
