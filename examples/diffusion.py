"""Perona-Malik diffusion: grey values flow between neighbours, but not across edges; what is an edge is learned.

Ten steps of it are ten layers of two numbers each, trained to take the noise off one photograph and tried on another.
Run it with `python examples/diffusion.py [--out picture.png] [--steps 200]`; it needs `pip install '.[demo]'`.
"""

import argparse

import skimage.data
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import symconv as sc

perona_malik = sc.Kernel("""
    lam: param[positive] = 0.1                      # how fast grey values flow
    kappa: param[positive] = 0.2                    # across larger differences than this they hardly do
    d = x - x[c, 0]
    flow = where(abs(dx) + abs(dy) == 1, exp(-(d/kappa)**2)*d, 0)
    x[c, 0] + lam*sum(flow)
""")
parser = argparse.ArgumentParser()
parser.add_argument("--out", default="diffusion.png", help="the picture")
parser.add_argument("--steps", type=int, default=200, help="of training")
arguments = parser.parse_args()


def diffusion(**initial: float) -> nn.Sequential:
    """Ten layers; `padding_mode="replicate"`: nothing flows across the rim of the image."""
    options = {"stride": 1, "padding": 1, "padding_mode": "replicate", **initial}
    return nn.Sequential(*[sc.Pool2d(perona_malik, kernel_size=3, **options) for _ in range(10)])


@torch.no_grad()
def run(layers: nn.Sequential, image: Tensor, clean: Tensor) -> tuple[list[Tensor], list[float]]:
    """The image before and after each step, and how far each is from the clean one."""
    images = [image]
    for layer in layers:
        images.append(layer(images[-1]))
    return images, [(each - clean).square().mean().sqrt().item() for each in images]


torch.manual_seed(0)
torch.set_num_threads(1)  # tensors as small as these gain nothing from more
camera, coins = (
    torch.tensor(image, dtype=torch.float32)[None] / 255 for image in (skimage.data.camera(), skimage.data.coins())
)
learned = diffusion()
optimizer = torch.optim.Adam(learned.parameters(), lr=0.03)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
for _ in range(arguments.steps):
    rows, columns = torch.randint(512 - 64, (2, 2)).tolist()
    clean = torch.stack([camera[:, row : row + 64, column : column + 64] for row, column in zip(rows, columns)])
    loss = (learned(clean + 0.1 * torch.randn_like(clean)) - clean).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

clean = coins[None, :, 25:185, 25:235]
noisy = clean + 0.1 * torch.randn_like(clean)
found = {"linear": run(diffusion(kappa=1e3), noisy, clean), "learned Perona-Malik": run(learned, noisy, clean)}
panels = [(clean, "a photograph"), (noisy, f"with noise: root mean square error {found['linear'][1][0]:.3f}")]
for name, (images, errors) in found.items():
    best = errors.index(min(errors))
    panels.append((images[best], f"{name} diffusion, step {best}: {errors[best]:.3f}"))
    print(f"{name} diffusion, step {best}: root mean square error {errors[best]:.3f}, before it {errors[0]:.3f}")

figure = Figure(figsize=(15.5, 7.8), layout="constrained")
grid = figure.subplots(2, 3, width_ratios=(1, 1, 0.8))
for axes, (image, title) in zip((*grid[0, :2], *grid[1, :2]), panels):
    axes.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=13)
    axes.set_axis_off()
for number in ("lam", "kappa"):
    grid[0, 2].plot(range(1, 11), [getattr(layer, number).item() for layer in learned], marker="o", label=number)
for name, (_, errors) in found.items():
    grid[1, 2].plot(errors, marker="o", label=name)
grid[0, 2].set_title("what each step has learned", fontsize=13)
grid[1, 2].set_title("root mean square error after each step", fontsize=13)
for axes in grid[:, 2]:
    axes.set(xlabel="step", xlim=(-0.3, 10.3), ylim=(0, None))
    axes.legend()
figure.savefig(arguments.out, dpi=80)
print(f"The picture: {arguments.out}")
