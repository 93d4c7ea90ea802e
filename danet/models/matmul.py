"""Matrix products on the CPU by oneDNN, as convolutions have them.

PyTorch multiplies float32 matrices by MKL, which takes its AVX2 kernels on AMD: 110 GFLOP/s a core where oneDNN's
AVX-512 kernels reach 240 (measured on an EPYC with torch 2.15; ``benchmarks/NOTES.md``). On other processors both
are as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _find_onednn() -> bool:
    """Whether PyTorch's oneDNN product, an operator of its compiler's that may change, is there and right."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        a, b = torch.arange(6.0).reshape(3, 2), torch.arange(8.0).reshape(2, 4)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], ""), a @ b)
    except (AttributeError, RuntimeError, TypeError):
        return False


ONEDNN = _find_onednn()


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """``a @ b`` of two matrices, in any strides; no gradient flows through it."""
    fits = a_MK.device.type == "cpu" and a_MK.dtype == torch.float32 and _is_dense(a_MK) and _is_dense(b_KN)
    if ONEDNN and fits and not torch.compiler.is_compiling():
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_KN.T, None, "none", [], "")
        return product
    return torch.mm(a_MK, b_KN)


def _is_dense(x_MN: Tensor) -> bool:
    """Of parts of larger matrices oneDNN has only a reference kernel, a hundred times slower."""
    return x_MN.numel() > 0 and (x_MN.is_contiguous() or x_MN.T.is_contiguous())
