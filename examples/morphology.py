"""Edges by mathematical morphology: the morphological gradient, a dilation minus an erosion, of a photograph.

Run it with `python examples/morphology.py [--out picture.png]`; it needs `pip install '.[demo]'`.
"""

import argparse

import scipy.ndimage
import skimage.data
import torch
from matplotlib.figure import Figure

import symconv as sc

parser = argparse.ArgumentParser()
parser.add_argument("--out", default="morphology.png", help="the picture")
picture = parser.parse_args().out

# The largest value under the window minus the smallest: 0 where the image is flat, large across an edge.
gradient = sc.Kernel("max(x + w) - min(x - w)", name="morphological gradient")
print(gradient)

photograph = torch.tensor(skimage.data.camera(), dtype=torch.float32) / 255
# w = 0 is the flat structuring element.  "ignore": taps outside the photograph take no part, so its rim is no edge.
edges = {
    size: sc.conv2d(
        gradient, photograph[None, None], torch.zeros(1, 1, size, size), padding="same", padding_mode="ignore"
    )[0, 0]
    for size in (3, 7)
}
for size, edge in edges.items():
    expected = torch.tensor(scipy.ndimage.morphological_gradient(photograph.numpy(), size=size))
    print(f"{size}x{size}: largest difference from scipy.ndimage is {(edge - expected).abs().max():.1e}")

figure = Figure(figsize=(15, 5.25), layout="constrained")
left, *others = figure.subplots(1, 3)
left.imshow(photograph, cmap="gray")
left.set_title("photograph", fontsize=14)
for axes, (size, edge) in zip(others, edges.items()):
    axes.imshow(edge, cmap="gray_r", vmax=float(edge.quantile(0.99)))
    axes.set_title(rf"$\max(x + w) - \min(x - w)$, w = 0, {size}×{size}", fontsize=14)
for axes in (left, *others):
    axes.set_axis_off()
figure.savefig(picture, dpi=100)
print(f"The picture: {picture}")
