"""A convolution that knows what is missing: a second input g is 1 where a pixel is known and 0 where it is not.

It learns to repair a photograph with holes, beside a plain convolution, to which a hole is black; then both repair a
photograph that they have not seen.  Run it with
`python examples/masked_convolution.py [--out picture.png] [--steps 200]`; it needs `pip install '.[demo]'`.
"""

import argparse

import skimage.data
import torch
from matplotlib.figure import Figure
from torch import Tensor

import symconv as sc

plain = sc.Kernel("sum(w*x)", name="plain convolution")
masked = sc.Kernel("g: input\nsum(w*x*g)/(sum(abs(w)*g) + 1e-6)", name="masked convolution")
print(f"{masked}\n")

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="masked_convolution.png", help="the picture")
parser.add_argument("--steps", type=int, default=200, help="of training")
arguments = parser.parse_args()


def mask_for(images: Tensor) -> Tensor:
    """A mask for images [n, 1, H, W]: a third of all pixels is known, and none in six scratches."""
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in images.shape[-2:]], indexing="ij")
    mask = torch.rand_like(images) < 0.35
    for angle, shift in zip(torch.pi * torch.rand(6), torch.rand(6) - 0.5):
        mask &= (rows * angle.cos() + columns * angle.sin() - shift).abs() * images.shape[-1] > 4
    return mask.float()


def crops(photograph: Tensor, count: int, size: int = 64) -> Tensor:
    """Squares out of a photograph [H, W], [count, 1, size, size]."""
    places = zip(*(torch.randint(extent - size, (count,)) for extent in photograph.shape))
    return torch.stack([photograph[None, row : row + size, column : column + size] for row, column in places])


torch.manual_seed(0)
torch.set_num_threads(1)  # tensors as small as these gain nothing from more
camera = torch.tensor(skimage.data.camera(), dtype=torch.float32) / 255
layers = [sc.Conv2d(kernel, 1, 1, kernel_size=9, padding=4) for kernel in (plain, masked)]
for layer in layers:
    torch.nn.init.constant_(layer.weight, 1 / 81)
optimizer = torch.optim.Adam([layer.weight for layer in layers], lr=0.003)
for _ in range(arguments.steps):
    images = crops(camera, 8)
    g = mask_for(images)
    losses = [(layer(images * g, **more) - images).square().mean() for layer, more in zip(layers, ({}, {"g": g}))]
    optimizer.zero_grad()
    (losses[0] + losses[1]).backward()
    optimizer.step()

cat = torch.tensor(skimage.data.chelsea()[20:260, 80:320], dtype=torch.float32).permute(2, 0, 1).unsqueeze(1) / 255
g = mask_for(cat[:1]).expand_as(cat)  # the colours are a batch of three
with torch.no_grad():
    repaired = [layer(cat * g, **more) for layer, more in zip(layers, ({}, {"g": g}))]
columns = [(cat, "a photograph"), (cat * g, "x: with holes")]
for kernel, image in zip((plain, masked), repaired):
    error = (image - cat).square().mean().sqrt()
    print(f"{kernel.name}: root mean square error {error:.3f}")
    columns.append((image, f"{kernel.name}\nroot mean square error {error:.3f}"))

figure = Figure(figsize=(17, 7.2), layout="constrained")
upper, lower = figure.subplots(2, 5)
for whole, part, (image, title) in zip(upper, lower, columns):
    for axes, shown in ((whole, image), (part, image[..., 70:140, 60:130])):
        axes.imshow(shown[:, 0].permute(1, 2, 0).clip(0, 1))
    whole.set_title(title, fontsize=13)
for axes, layer in zip((upper[4], lower[4]), layers):
    weight = layer.weight.detach()[0, 0]
    axes.imshow(weight, cmap="PuOr", vmin=-weight.abs().max(), vmax=weight.abs().max())
    axes.set_title(f"learned w of the\n{layer.kernel.name}", fontsize=13)
for axes in (*upper, *lower):
    axes.set_axis_off()
figure.savefig(arguments.out, dpi=80)
print(f"The picture: {arguments.out}")
