"""The CUDA backend: generated code for NVIDIA's GPUs, compiled at first use by NVRTC; and the same code emulated.

A kernel is one source text.  What is built from it are *modules*, one for each pass, dtype, kind of padding and
architecture, each when it is first called for.  "cuda-emu" runs the very same text, plans and launches on the CPU.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch

from ..build.driver import LoadedModule
from ..build.emulation import emulated
from ..build.nvrtc import Resources, architectures, cubin, nvrtc_version, resources_of
from ..build.toolchain import find_toolchain
from ..errors import BackendError
from ..geometry import Geometry
from ..kernel import Kernel
from ..render import static_headers
from .cuda_flat_plan import flat_cut
from .cuda_plan import CudaPlan, Cut, Packed, block_cut
from .native import FACTS, NativeBackend, NativeKernel, ShapeError, defines_of
from .native_facts import Facts, facts_of
from .native_plan import line_of, ranked

log = logging.getLogger("symconv")

T = TypeVar("T")

SOURCE = "kernel.cu"
#: So many halvings leave one result of any tile.
HALVINGS = 6
#: Places in a line of windows are whole numbers of 32 bits.
MOST_WINDOWS = 2**31
#: Multiprocessors of GPUs of an architecture, where none is at hand to ask.
PROCESSORS = {"sm_80": 108, "sm_90": 132, "sm_100": 148}


class Module(Protocol):
    """What carries out launches.  `spilled` are the functions that spill registers."""

    spilled: Sequence[str]

    def launch(self, function: str, blocks: int, threads: int, shared_bytes: int, call: bytes) -> None:
        """Run a function in `blocks` blocks of `threads` threads, with so many bytes of shared memory for each block;
        `call` is its argument."""


@functools.cache
def _unavailable() -> str | None:
    """Why there are no CUDA kernels on this machine; where there is a GPU it is said once, in one line of the log."""
    if not torch.cuda.is_available():
        return "there is no CUDA device, or this PyTorch was built without CUDA"
    try:
        nvrtc_version()
    except BackendError as error:
        log.warning("symconv runs on the torch backend: %s", error)
        return str(error)
    return None


def generate(kernel: Kernel) -> dict[str, str]:
    """The files of a cache entry: the source, and the facts that spare the next process the derivation."""
    from ..lower import lower
    from .cuda_source import cuda_source

    schedule = lower(kernel.formula, lift=True)
    source, flat_forward, flat_backward = cuda_source(kernel, schedule)
    facts = dataclasses.replace(facts_of(kernel, schedule), flat_forward=flat_forward, flat_backward=flat_backward)
    return {SOURCE: source, FACTS: facts.to_json()}


def cut_of(
    facts: Facts,
    direction: str,
    tensors: Sequence[torch.Tensor],
    geometry: Geometry,
    processors: int,
    fast_math: bool = False,
    smaller: Mapping[str, int] = MappingProxyType({}),
) -> Cut:
    """How a pass is cut for some shapes, with all options of the compiler; `smaller` as `fitted` gives it.

    Raises:
        ShapeError: if an image is too large.
    """
    x = tensors[0]
    if (length := line_of(x, geometry).length) >= MOST_WINDOWS:
        raise ShapeError(f"the windows of one image are {length}; CUDA kernels count fewer than 2**31")
    cut = flat_cut(facts, direction, tensors, geometry, processors, smaller)
    cut = cut or block_cut(facts, direction, tensors, geometry, processors)
    defines = defines_of(direction, x.dtype, geometry.ignores_padding, ranked(facts, x, geometry))
    return cut._replace(defines=(*defines, *["-DSYMCONV_FAST_MATH"] * fast_math, *cut.defines))


def precompiled(
    kernel: Kernel,
    architecture: str,
    dtype: torch.dtype,
    x: Sequence[int],
    geometry: Geometry,
    fast_math: bool = False,
) -> dict[str, Resources]:
    """Put the modules that a layer needs into the cache, for both passes; no GPU is needed.

    Args:
        kernel: which one.
        architecture: of the GPUs, as "sm_90".
        dtype: of the tensors.
        x: the shape of the input, `[N, C, *size]`.
        geometry: of the layer.
        fast_math: as layers have it.

    Returns:
        what the functions take.

    Raises:
        BackendError: if NVRTC is missing or does not know the architecture.
        CompilationError: if it refuses the source.
    """
    if architecture not in architectures():
        raise BackendError(f"NVRTC {nvrtc_version()} compiles for {', '.join(architectures())}, not for {architecture}")
    files = CudaBackend().compile(kernel)
    tensors = [torch.empty(x, dtype=dtype, device="meta") for role in files.facts.roles if role == "input"]
    found: dict[str, Resources] = {}
    for direction in ("forward", "backward"):
        processors = PROCESSORS.get(architecture, 128)
        cuts = functools.partial(cut_of, files.facts, direction, tensors, geometry, processors, fast_math)
        title = f"{kernel.title} (cuda, {architecture}, {direction}, {str(dtype).removeprefix('torch.')})"
        _, _, resources = unspilled(files.source, cuts, architecture, title)
        found |= resources
    return found


def machine_code(source: str, cut: Cut, architecture: str, title: str) -> tuple[bytes, dict[str, Resources]]:
    """Machine code and what its functions take.  Where registers are spilled, fewer rounds of a loop are under way."""
    while True:
        code, said = cubin(source, static_headers(), cut.options, architecture, title)
        found = resources_of(said)
        if cut.taps_at_a_time <= 1 or not spilling(found):
            return code, found
        cut = cut._replace(taps_at_a_time=cut.taps_at_a_time // 2)


def spilling(resources: Mapping[str, Resources]) -> list[str]:
    """The functions that spill registers."""
    return [name for name, each in resources.items() if each.spilled]


def fitted(cuts: Callable[[Mapping[str, int]], Cut], made: Callable[[Cut], tuple[T, Sequence[str]]]) -> tuple[Cut, T]:
    """The cut with the largest tiles for which no function spills registers, if there is one, and what is made of it.

    Args:
        cuts: the cut, for how many times the tiles of each function are halved.
        made: what is made of a cut, and which of its functions spill.
    """
    smaller: dict[str, int] = {}
    cut = cuts(smaller)
    while True:
        found, spilled = made(cut)
        if not spilled:
            return cut, found
        for _ in range(HALVINGS):  # one alone may leave a small tile as it is
            smaller = smaller | {name: smaller.get(name, 0) + 1 for name in spilled}
            if (halved := cuts(smaller)).options != cut.options:
                break
        else:
            return cut, found
        cut = halved


def unspilled(
    source: str, cuts: Callable[[Mapping[str, int]], Cut], architecture: str, title: str
) -> tuple[Cut, bytes, dict[str, Resources]]:
    """The cut that `fitted` finds for an architecture, its machine code and what the functions take."""

    def made(cut: Cut) -> tuple[tuple[bytes, dict[str, Resources]], list[str]]:
        found = machine_code(source, cut, architecture, title)
        return found, spilling(found[1])

    cut, (code, resources) = fitted(cuts, made)
    return cut, code, resources


class CudaKernel(NativeKernel[CudaPlan]):
    """A generated CUDA file and the modules built from it."""

    def __init__(self, text: str, title: str, source: str, facts: Facts, fast_math: bool) -> None:
        super().__init__(text, title, source, facts, fast_math)
        self._modules: dict[tuple[Any, ...], Module] = {}
        #: The role of each tensor of a call that is a gradient; None for the others.
        self._roles = [*[None] * (len(self.roles_and_axes) - len(facts.tensors)), *facts.roles]

    # -- What differs between a GPU and its emulation ----------------------------------------------------------------

    def processors(self, device: torch.device) -> int:
        """The multiprocessors that share the work."""
        return int(torch.cuda.get_device_properties(device).multi_processor_count)

    def built(self, device: torch.device, cut: Cut, description: str) -> Module:
        """The module for a device."""
        major, minor = torch.cuda.get_device_capability(device)
        code, resources = machine_code(self.source, cut, f"sm_{major}{minor}", description)
        return LoadedModule(code, self.title, spilling(resources))

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        """Make a device the current one."""
        return torch.cuda.device(device)

    # -- Calls -------------------------------------------------------------------------------------------------------

    def plan_key(self, device: torch.device) -> torch.device:
        """The device: each has its own size, and architecture."""
        return device

    def planned(self, direction: str, tensors: Sequence[torch.Tensor], geometry: Geometry) -> CudaPlan:
        x = tensors[0]
        processors = self.processors(x.device)
        cuts = functools.partial(cut_of, self.facts, direction, tensors, geometry, processors, self.fast_math)

        def made(cut: Cut) -> tuple[Module, Sequence[str]]:
            module = self._module(direction, x.device, x.dtype, cut)
            return module, module.spilled

        cut, module = fitted(cuts, made)
        native, output_shape = cut.launches[0].geometry, geometry.output_shape(x.shape)
        steps = native.strip, native.filter_step
        return CudaPlan(*steps, output_shape, geometry.groups, direction, cut, module, x.device)

    def _module(self, direction: str, device: torch.device, dtype: torch.dtype, cut: Cut) -> Module:
        key = device, cut.options
        with self._lock.held():
            if key not in self._modules:
                description = f"{self.title} (cuda, {direction}, {str(dtype).removeprefix('torch.')})"
                self._modules[key] = self.built(device, cut, description)
            return self._modules[key]

    def call(self, plan: CudaPlan, tensors: Sequence[torch.Tensor | None], numbers: Sequence[float]) -> None:
        x, (arguments, held) = tensors[0], plan.arguments(tensors, self.roles_and_axes)
        assert x is not None
        gradients = [None if each is None else role for role, each in zip(self._roles, tensors)]

        def launch(each: Packed, scratch: torch.Tensor) -> None:
            what = each.launch
            argument = each.argument(scratch.data_ptr(), numbers, arguments)
            plan.module.launch(what.function, what.blocks, what.threads, what.shared_bytes, argument)

        with self.on(plan.device):
            if not plan.scratch:  # once per shape: how much memory it takes is known to the generated code
                sizes = torch.zeros(2, dtype=torch.int64, device=plan.device)
                measure = plan.cut.launches[0]._replace(function=f"symconv_{plan.direction}_measure", blocks=1)
                launch(plan.packed(measure), sizes)
                plan.scratch[:] = sizes.tolist()
            common, own = plan.scratch
            scratch = self.empty(x, (common + own * plan.cut.blocks,), torch.uint8)
            for each in plan.launches(gradients):
                launch(each, scratch)
        del held


class EmulatedKernel(CudaKernel):
    """A generated CUDA file on the CPU.

    All memory is full of NaN beforehand, so that what is read before it is written shows.
    """

    def processors(self, device: torch.device) -> int:
        return 2

    def built(self, device: torch.device, cut: Cut, description: str) -> Module:
        order = int(os.environ.get("SYMCONV_EMULATION_ORDER", "0"))
        return emulated(self.source, static_headers(), cut.options, description, order)

    def on(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext()

    def empty(self, x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        found = super().empty(x, shape, dtype)
        if found.numel():
            found.view(torch.uint8).fill_(0xFF)
        return found


class CudaBackend(NativeBackend[CudaKernel]):
    """Renders kernels as CUDA C++ and runs them on NVIDIA's GPUs."""

    name, language, files = "cuda", "cuda", (SOURCE, FACTS)
    device, what = "cuda", "a CUDA device"
    kernel_type = CudaKernel

    def unavailable(self) -> str | None:
        return _unavailable()

    def generate(self, kernel: Kernel) -> dict[str, str]:
        return generate(kernel)


class EmulationBackend(CudaBackend):
    """The same kernels on the CPU, thread by thread: to try and to test CUDA code without a GPU.  It is slow."""

    name = "cuda-emu"
    device, what = "cpu", "the CPU"
    kernel_type = EmulatedKernel

    def unavailable(self) -> str | None:
        try:
            find_toolchain()
        except BackendError as error:
            return str(error)
        return None
