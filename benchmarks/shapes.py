"""The layers that are timed: sizes of images, windows and filters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One layer.

    Args:
        name: as on the command line.
        x: the input, `[batch, channels, *image]`.
        filters: the number of outputs; 0 for a pooling layer, which has as many as channels.
        window: the size of the window; empty where the kernel says it.
        stride, padding, groups: as of `torch.nn.functional.conv2d`, one number for all axes.
    """

    name: str
    x: tuple[int, ...]
    filters: int = 0
    window: tuple[int, ...] = ()
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def pools(self) -> bool:
        return self.filters == 0

    @property
    def rank(self) -> int:
        return len(self.x) - 2

    @property
    def channels(self) -> int:
        """Channels that one output sees."""
        return 1 if self.pools else self.x[1] // self.groups

    @property
    def w(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.filters, self.channels, *self.window

    @property
    def y(self) -> tuple[int, ...]:
        """The shape of the output."""
        size = ((i + 2 * self.padding - k) // self.stride + 1 for i, k in zip(self.x[2:], self.window))
        return self.x[0], self.filters or self.x[1], *size

    @property
    def taps(self) -> int:
        """How often the inner expression of the formula is evaluated in one forward pass."""
        return math.prod(self.y) * self.channels * math.prod(self.window)

    @property
    def title(self) -> str:
        extras = [f"{'x'.join(map(str, self.window))}"] if self.window else []
        extras += [f"stride {self.stride}"] if self.stride > 1 else []
        extras += [f"{self.groups} groups"] if self.groups > 1 else []
        return f"{list(self.x)}" + (f" to {self.filters}, " if self.filters else ", ") + ", ".join(extras)

    def with_window(self, size: int, stride: int) -> Shape:
        return replace(self, window=(size,) * self.rank, stride=stride)


#: Layers with filters.
LAYERS = (
    Shape("stage1", (4, 64, 56, 56), 64, (3, 3), padding=1),
    Shape("stage3", (4, 256, 14, 14), 256, (3, 3), padding=1),
    Shape("stem", (2, 3, 224, 224), 64, (7, 7), stride=2, padding=3),
    Shape("depthwise", (4, 64, 56, 56), 64, (3, 3), padding=1, groups=64),
    Shape("audio", (1, 1, 16000), 32, (25,), padding=12),
    Shape("volume", (1, 8, 32, 32, 32), 8, (3, 3, 3), padding=1),
    Shape("tiny", (1, 1, 8, 8), 1, (3, 3), padding=1),
    Shape("stage1_large", (32, 64, 56, 56), 64, (3, 3), padding=1),
    Shape("stage3_large", (32, 256, 14, 14), 256, (3, 3), padding=1),
    Shape("depthwise_large", (32, 64, 56, 56), 64, (3, 3), padding=1, groups=64),
)
#: Layers without; nothing is padded, so that every way sees the same whole windows.
POOLS = (Shape("maps", (4, 64, 56, 56)), Shape("image", (1, 3, 1024, 1024)), Shape("maps_large", (32, 64, 56, 56)))

SHAPES: dict[str, Shape] = {shape.name: shape for shape in (*LAYERS, *POOLS)}
