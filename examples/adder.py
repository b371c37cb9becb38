"""An AdderNet layer in place of a convolution: no multiplications, templates that are compared with the image.

A small network for handwritten digits; its second convolution is swapped for `-sum(abs(x - w))` and everything is
trained for a few passes.  Run it with `python examples/adder.py`; it needs `pip install '.[demo]'`.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import symconv as sc

torch.manual_seed(0)
torch.set_num_threads(1)  # tensors as small as these gain nothing from more
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
training, test = order[:1347], order[1347:]

network = nn.Sequential(
    nn.Conv2d(1, 8, kernel_size=3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Conv2d(8, 16, kernel_size=3, padding=1, stride=2),
    nn.BatchNorm2d(16),  # sums of 72 distances are large and negative: an adder wants its outputs normalised
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(16 * 4 * 4, 10),
)

adder = sc.Kernel("-sum(abs(x - w))", name="adder", init="normal")
print(adder)
network[3] = sc.Conv2d(adder, 8, 16, kernel_size=3, padding=1, stride=2)
print(f"\n{network}\n")

# The gradient for a weight is only ever a sum of signs, whatever the distance; Adam finds the step size by itself.
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for epoch in range(1, 6):
    network.train()
    for batch in training[torch.randperm(len(training))][:1344].split(64):
        loss = F.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        accuracy = (network(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}, test accuracy {accuracy:.1%}")
