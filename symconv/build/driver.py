"""CUDA kernels on a GPU: machine code loaded and launched through NVIDIA's driver, on PyTorch's current stream.

`launch` copies nothing, waits for nothing and takes no memory, so that it may be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import BackendError
from .nvrtc import INSTALL


@functools.cache
def _driver() -> Any:
    """The bindings of the driver.

    Raises:
        BackendError: if there are none.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendError(f"the Python bindings of CUDA are missing ({error}); {INSTALL}") from error
    return driver


def _stream() -> int:
    """PyTorch's current stream of the current device; `torch.cuda.current_stream` takes as long as a launch."""
    return int(torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice()))


class LoadedModule:
    """The functions of a generated CUDA file on the GPUs of one architecture.

    Args:
        code: a cubin.
        title: of the kernel, for errors.
        spilled: functions that spill registers.
    """

    def __init__(self, code: bytes, title: str, spilled: Sequence[str] = ()) -> None:
        self.spilled = spilled
        self.title, self._code, self._functions = title, code, dict[str, Any]()
        driver = _driver()
        torch.cuda.init()
        (self._library,) = self._checked(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0), "load")

    def launch(self, function: str, blocks: int, threads: int, shared_bytes: int, call: bytes) -> None:
        """Launch a function in `blocks` blocks of `threads` threads on the current stream of the current device, with
        so many bytes of shared memory for each block.

        Raises:
            BackendError: if the driver refuses.
        """
        driver = _driver()
        kernel = self._functions.get(function)
        if kernel is None:
            (found,) = self._checked(driver.cuLibraryGetKernel(self._library, function.encode()), f"find {function} in")
            kernel = self._functions[function] = driver.CUfunction(int(found))
        argument = ctypes.c_char_p(call)  # the driver takes an array of pointers to arguments, and copies what is there
        status = driver.cuLaunchKernel(
            kernel, blocks, 1, 1, threads, 1, 1, shared_bytes, _stream(), ctypes.addressof(argument), 0
        )
        self._checked(status, f"launch {function} of")

    def _checked(self, result: tuple[Any, ...], what: str) -> tuple[Any, ...]:
        driver = _driver()
        status, *found = result
        if status != driver.CUresult.CUDA_SUCCESS:
            _, text = driver.cuGetErrorString(status)
            said = text.decode() if text else ""
            raise BackendError(f"the CUDA driver could not {what} {self.title!r}: {status.name} {said}")
        return tuple(found)
