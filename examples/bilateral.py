"""Bilateral filters: averages over a window in which only taps that resemble the centre count.

A noisy photograph is smoothed by its own edges; then a noisy depth map with holes by the edges of a photograph of the
same scene, a second input with channels of its own.  Run it with `python examples/bilateral.py [--out picture.png]`;
it needs `pip install '.[demo]'`.
"""

import argparse
import math

import skimage.data
import torch
from matplotlib.figure import Figure
from torch import Tensor

import symconv as sc

bilateral = sc.Kernel("""
    sigma: const = 2                                            # in pixels
    kappa: const = 0.3                                          # in brightness
    near = exp(-(dx**2 + dy**2)/(2*sigma**2))
    k = near*exp(-(x - x[c, 0])**2/(2*kappa**2))                # x[c, 0] is the centre of the window
    sum(k*x)/sum(k)
""")
joint = sc.Kernel("""
    g: input                                                    # the photograph, 3 channels
    m: input                                                    # 1 where the depth is known, 0 in its holes
    sigma: const = 3
    kappa: const = 0.15
    near = exp(-(dx**2 + dy**2)/(2*sigma**2))
    k = near*exp(-sum((g - g[c, 0])**2, dim=c)/(2*kappa**2))    # dim=c sums over the colours: one number per tap
    sum(k*m*x)/(sum(k*m) + 1e-9)
""")


def image(values: object) -> Tensor:
    """An array [H, W] or [H, W, C] as [1, C, H, W]."""
    tensor = torch.as_tensor(values, dtype=torch.float32)
    return tensor.reshape(*tensor.shape[:2], -1).permute(2, 0, 1).unsqueeze(0)


parser = argparse.ArgumentParser()
parser.add_argument("--out", default="bilateral.png", help="the picture")
picture = parser.parse_args().out

torch.manual_seed(0)
coffee = image(skimage.data.coffee()[20:260, 140:500]) / 255
left, _, disparity = skimage.data.stereo_motorcycle()
scene, depth = image(left[60:380, 240:720]) / 255, image(disparity[60:380, 240:720]) / 60
known = depth.isfinite().float()
depth = depth.where(known > 0, 0)
noisy, rough = coffee + 0.1 * torch.randn_like(coffee), known * (depth + 0.1 * torch.randn_like(depth))

rows = [[("a photograph", coffee), ("x: with noise", noisy)]]
rows += [[("g: a photograph of a scene", scene), ("x: its depth, with noise and holes", rough)]]
for name, options in (("Gaussian filter", {"kappa": math.inf}), ("bilateral filter", {})):
    rows[0].append((name, sc.pool2d(bilateral, noisy, 7, stride=1, padding=3, **options)))
    name = name.replace("bilateral", "joint bilateral")
    rows[1].append((name, sc.pool2d(joint, rough, 9, stride=1, padding=4, g=scene, m=known, **options)))

figure = Figure(figsize=(17, 6.9), layout="constrained")
for row, truth, weight, line in zip(rows, (coffee, depth), (torch.ones(1), known), figure.subplots(2, 4)):
    for axes, (title, panel) in zip(line, row):
        if panel is not truth and panel.shape == truth.shape:
            error = (weight * (panel - truth).square()).sum() / weight.expand_as(truth).sum()
            title += f"\nroot mean square error {error.sqrt():.3f}"
            print(title.replace("\n", ": "))
        axes.imshow(panel[0].permute(1, 2, 0).clip(0, 1), cmap="viridis")
        axes.set_title(title, fontsize=13)
        axes.set_axis_off()
figure.savefig(picture, dpi=80)
print(f"The picture: {picture}")
