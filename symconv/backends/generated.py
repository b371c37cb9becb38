"""What backends that generate code share: kernels by name, their files from the cache or from memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

from ..build.cache import Cache
from ..build.key import content_key, generator_fields
from ..build.lock import ForkSafeLock
from ..errors import CacheError, SymconvWarning
from ..kernel import Kernel

#: A kernel that was loaded, with its `source`.
K = TypeVar("K")


class GeneratingBackend(Generic[K]):
    """Generates the files of a kernel once, and loads it once per process.

    A backend says what the files are (`generate`) and what to make of them (`loaded`).
    """

    name: str
    #: The names of the files of a kernel.
    files: tuple[str, ...]

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, str, bool], K] = {}
        self._lock = ForkSafeLock()

    def generate(self, kernel: Kernel) -> dict[str, str]:
        """The files of a cache entry: the source, and the facts that spare the next process the derivation."""
        raise NotImplementedError

    def loaded(self, kernel: Kernel, files: Mapping[str, str], fast_math: bool) -> K:
        """The kernel, from its files."""
        raise NotImplementedError

    def compile(self, kernel: Kernel, fast_math: bool = False) -> K:
        key = kernel.text, kernel.title, fast_math
        if (found := self._compiled.get(key)) is not None:
            return found
        with self._lock.held():
            if key not in self._compiled:
                self._compiled[key] = self.loaded(kernel, self._files(kernel), fast_math)
            return self._compiled[key]

    def _files(self, kernel: Kernel) -> Mapping[str, str]:
        """The files of a kernel, from the cache or, where there is none to be had, from memory."""
        key = content_key({**generator_fields(), "backend": self.name, "kernel": kernel.text, "title": kernel.title})
        made: dict[str, str] = {}

        def build(directory: Path) -> None:
            made.update(self.generate(kernel))
            for name, text in made.items():
                (directory / name).write_text(text, encoding="utf-8")

        try:
            entry = Cache().get(key, build, f"{kernel.title} ({self.name})")
            return {name: entry.read(name) for name in self.files}
        except CacheError as error:
            warnings.warn(f"{error}; this kernel is generated anew in each process", SymconvWarning, stacklevel=2)
            return made or self.generate(kernel)
