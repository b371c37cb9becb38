"""The product over a window of tan(x + w): forward, gradients that are exact at zeros, and a training step.

The question that symconv grew from: a layer whose every output pixel is the *product*, not the sum, of what its taps
give.  Run it with `python examples/tan_product.py`.
"""

import math

import torch

import symconv as sc

kernel = sc.Kernel("prod(tan(x + w))")
print(kernel)

# Forward: arguments as torch.nn.Conv2d, after the kernel.  tan is 1 at pi/4, where a product keeps its size.
torch.manual_seed(0)
layer = sc.Conv2d(kernel, 1, 4, kernel_size=3, init=lambda w: torch.nn.init.normal_(w, mean=math.pi / 4, std=0.05))
images = 0.2 * torch.rand(8, 1, 16, 16) - 0.1
outputs = layer(images)

windows = images.unfold(2, 3, 1).unfold(3, 3, 1)  # the slow way: every window a copy, [8, 1, 14, 14, 3, 3]
slow = (windows[:, None] + layer.weight[:, :, None, None]).tan().prod(-1).prod(-1).prod(2)
print(f"\noutputs {list(outputs.shape)}, largest difference from unfolding: {(outputs - slow).abs().max():.1e}")

# Gradients: the derivative for one tap holds the product of the OTHER taps, which need not be 0 where the whole product
# is.  Dividing the whole product by the tap's own factor would give 0/0 there.
print("\nOne window of three taps, w = 0:")
for taps in ([0.4, 0.5, 0.6], [0.0, 0.5, 0.6], [0.0, 0.0, 0.6]):
    x = torch.tensor([[taps]], dtype=torch.float64, requires_grad=True)
    y = sc.conv1d(kernel, x, torch.zeros(1, 1, 3, dtype=torch.float64))
    y.sum().backward()
    tan = [math.tan(tap) for tap in taps]
    by_hand = [(1 + tan[i] ** 2) * math.prod(tan[:i] + tan[i + 1 :]) for i in range(3)]
    assert x.grad is not None
    print(f"  x = {taps}   y = {y.item():.4f}")
    print(f"    dy/dx           {', '.join(f'{value:.4f}' for value in x.grad.flatten().tolist())}")
    print(f"    dy/dx by hand   {', '.join(f'{value:.4f}' for value in by_hand)}")

# Training: a layer like any other.
target = torch.ones_like(outputs)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
print()
for step in range(5):
    loss = (layer(images) - target).square().mean()
    print(f"step {step}: loss {loss.item():.4f}")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
