"""A tour of what a kernel tells about itself: mathematics, gradients, LaTeX, generated code, a numerical check.

Nothing is trained here.  Run it with `python examples/inspect_gradients.py`.
"""

import sympy as sp

import symconv as sc
from symconv import w, x

# A soft dilation: the larger beta, the closer to max(x + w).
soft = sc.Kernel("beta: const = 5\nlogsumexp(beta*(x + w))/beta", name="soft dilation")

print("-- print(kernel): the formula and its partial derivatives\n")
print(soft)

print("\n-- gradients(): the same as SymPy expressions, one for each operand\n")
for operand, gradient in soft.gradients().items():
    print(f"{operand}: {gradient}")

print("\n-- so they can be computed with: where does the bump exp(-w*(x - 1)**2) rise most steeply?\n")
bump = sc.Kernel(sc.sum(sp.exp(-w * (x - 1) ** 2)))
slope = bump.gradients()[x]
print(f"dy/dx is {slope}")
print(f"for w = 2 that is at x = {sp.nsolve(sp.diff(slope.subs(w, 2), x), x, 0.4):.4f}")

print("\n-- latex()\n")
print(soft.latex())

print("\n-- source('torch'): the generated code, here its docstring and its mathematics\n")
print(soft.source("torch").partition("# -- The passes")[0].rstrip())

print("\n-- check(): values against a plain evaluation of the formula, gradients against central differences\n")
report = soft.check()
print(report)
assert report.ok
