"""A layer of Gabor filters: three learned numbers per filter in place of a weight for every tap.

Eight filters and a linear classifier learn to tell photographs of brick, grass and gravel apart, and again with the
filters fixed.  Run it with `python examples/gabor.py [--out picture.png] [--steps 140]`;
it needs `pip install '.[demo]'`.
"""

import argparse

import skimage.data
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import symconv as sc

# The energy of a wave in a soft window: cosine and sine squared, so it does not matter where the wave begins.
gabor = sc.Kernel("""
    f: param[o, positive] = 0.15            # frequency, in waves per pixel
    th: param[o]                            # direction
    s: param[o, positive] = 2               # size of the soft window, in pixels
    near = exp(-(dx**2 + dy**2)/(2*s**2))
    phase = 2*pi*f*(dx*cos(th) + dy*sin(th))
    d = x - mean(x)
    log((sum(near*cos(phase)*d)**2 + sum(near*sin(phase)*d)**2)/sum(near**2) + 0.01)
""")
parser = argparse.ArgumentParser()
parser.add_argument("--out", default="gabor.png", help="the picture")
parser.add_argument("--steps", type=int, default=140, help="of training")
arguments = parser.parse_args()

FILTERS, SIZE, NAMES = 8, 9, ("brick", "grass", "gravel")
photographs = [torch.tensor(getattr(skimage.data, name)(), dtype=torch.float32) for name in NAMES]
photographs = [(photograph - photograph.mean()) / photograph.std() for photograph in photographs]


def patches(count: int, left: int) -> tuple[Tensor, Tensor]:
    """`count` patches of 32x32 pixels out of 256 columns of the photographs, and which photograph it is."""
    labels, rows = torch.randint(3, (count,)), torch.randint(512 - 32, (count,))
    places = zip(labels, rows, left + torch.randint(256 - 32, (count,)))
    return torch.stack([photographs[k][None, row : row + 32, at : at + 32] for k, row, at in places]), labels


def kernels(layer: sc.Conv2d) -> Tensor:
    """The cosine part of each filter, [FILTERS, SIZE, SIZE]."""
    f, th, s = (value.detach()[:, None, None] for value in (layer.f, layer.th, layer.s))
    dy, dx = torch.meshgrid(*[torch.arange(SIZE) - SIZE // 2] * 2, indexing="ij")
    return torch.exp(-(dx**2 + dy**2) / (2 * s**2)) * torch.cos(2 * torch.pi * f * (dx * th.cos() + dy * th.sin()))


def train(learned: bool) -> tuple[list[Tensor], list[tuple[int, float]]]:
    """The filters before and after; (step, accuracy in per cent) along the way."""
    torch.manual_seed(0)
    test, expected = patches(300, 256)  # the right half; the left half is for training
    layer = sc.Conv2d(gabor, 1, FILTERS, SIZE, stride=3).requires_grad_(learned)
    with torch.no_grad():
        layer.th.copy_(torch.arange(FILTERS) * torch.pi / FILTERS)
    network = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(FILTERS, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    first, curve = kernels(layer), []
    for step in range(arguments.steps + 1):
        if step % 20 == 0:
            with torch.no_grad():
                curve.append((step, 100 * (network(test).argmax(1) == expected).float().mean().item()))
        images, labels = patches(32, 0)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        schedule.step()
    return [first, kernels(layer)], curve


torch.set_num_threads(1)  # tensors as small as these gain nothing from more
curves = {}
for name in ("fixed", "learned"):
    filters, curves[name] = train(name == "learned")
    print(f"{name} filters: {curves[name][-1][1]:.1f}% of unseen patches are right")

figure = Figure(figsize=(13, 7.8), layout="constrained")
top, *lines = figure.subfigures(3, 1, height_ratios=(2.2, 1, 1))
*textures, accuracy = top.subplots(1, 4, width_ratios=(1, 1, 1, 1.3))
for axes, name, photograph in zip(textures, NAMES, photographs):
    axes.imshow(photograph[:128, :128], cmap="gray")
    axes.set_title(name, fontsize=13)
    axes.set_axis_off()
for name, curve in curves.items():
    accuracy.plot(*zip(*curve), marker="o", label=f"{name} filters")
accuracy.set(xlabel="step", title="unseen patches that are right [%]", ylim=(30, 100))
accuracy.legend(loc="lower right")
for line, title, kernel in zip(lines, ("the filters before", "and after"), filters):
    line.suptitle(title, fontsize=13)
    for axes, shown in zip(line.subplots(1, FILTERS), kernel):
        axes.imshow(shown, cmap="PuOr", vmin=-1, vmax=1)
        axes.set_axis_off()
figure.savefig(arguments.out, dpi=80)
print(f"The picture: {arguments.out}")
