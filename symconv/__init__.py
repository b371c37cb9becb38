"""symconv: a symbolic kernel compiler for PyTorch.

Write what happens at one tap of a convolution as a SymPy expression in the input `x` and the weight `w`; symconv
derives the gradients, writes the code and hands back a layer that trains like any other.

>>> import symconv as sc
>>> layer = sc.Conv2d("-sum(abs(x - w))", 3, 16, kernel_size=3, padding=1)
"""

from sympy import Abs as abs
from sympy import (
    Heaviside,
    Piecewise,
    acos,
    asin,
    atan,
    atan2,
    cos,
    cosh,
    erf,
    exp,
    log,
    sign,
    sin,
    sinh,
    sqrt,
    tan,
    tanh,
)
from sympy import ceiling as ceil
from sympy import floor as floor

from . import zoo
from .build import key as _key  # noqa: F401 (early: it takes the digest of our source)
from .errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendError,
    CacheError,
    DerivativeError,
    FormulaError,
    InternalError,
    SymconvError,
    SymconvWarning,
)
from .functional import conv1d, conv2d, conv3d, pool1d, pool2d, pool3d
from .functions import (
    bspline,
    clip,
    detach,
    expm1,
    gelu,
    hypot,
    log1p,
    relu,
    sigmoid,
    silu,
    sinc,
    softplus,
    ste,
    xlogx,
)
from .functions import case as where
from .functions import round_ as round
from .functions import with_slopes as custom_grad
from .kernel import Kernel
from .language.symbols import C, N, T, b, c, const, dx, dy, dz, field, input, o, param, t, w, weight, x
from .nn import Conv1d, Conv2d, Conv3d, Pool1d, Pool2d, Pool3d
from .reductions import Cov as cov
from .reductions import LogSumExp as logsumexp
from .reductions import Mean as mean
from .reductions import Median as median
from .reductions import Norm as norm
from .reductions import Prod as prod
from .reductions import Quantile as quantile
from .reductions import Softmax as softmax
from .reductions import Std as std
from .reductions import Sum as sum
from .reductions import Var as var
from .reductions import max_ as max
from .reductions import min_ as min
from .version import __version__

#: Everything above.  Some names hide Python's own (sum, max, input), so import the module: `import symconv as sc`.
__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BackendError",
    "C",
    "CacheError",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "DerivativeError",
    "FormulaError",
    "Heaviside",
    "InternalError",
    "Kernel",
    "N",
    "Piecewise",
    "Pool1d",
    "Pool2d",
    "Pool3d",
    "SymconvError",
    "SymconvWarning",
    "T",
    "__version__",
    "abs",
    "acos",
    "asin",
    "atan",
    "atan2",
    "b",
    "bspline",
    "c",
    "ceil",
    "clip",
    "const",
    "conv1d",
    "conv2d",
    "conv3d",
    "cos",
    "cosh",
    "cov",
    "custom_grad",
    "detach",
    "dx",
    "dy",
    "dz",
    "erf",
    "exp",
    "expm1",
    "field",
    "floor",
    "gelu",
    "hypot",
    "input",
    "log",
    "log1p",
    "logsumexp",
    "max",
    "mean",
    "median",
    "min",
    "norm",
    "o",
    "param",
    "pool1d",
    "pool2d",
    "pool3d",
    "prod",
    "quantile",
    "relu",
    "round",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "softmax",
    "softplus",
    "sqrt",
    "std",
    "ste",
    "sum",
    "t",
    "tan",
    "tanh",
    "var",
    "w",
    "weight",
    "where",
    "x",
    "xlogx",
    "zoo",
]
