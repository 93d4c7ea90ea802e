"""The attention modules of DANet, DRANet and ClusterDANet.

Shape suffixes (``q_BND``): B batch, C channels (512 in the published models), D query/key channels, H height, W width,
N positions (H*W), K centres or clusters, M bottleneck channels of CCAM, P all positions of a batch (B*H*W).

Every module takes and gives ``(B, C, H, W)``, in any memory format, and holds no state that depends on H and W.
Under autocast, energies whose differences matter more than their size (CAM, CCAM, clustering) are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = Literal["fused", "reference"]

BLOCK = 2**22
"""Elements of the attention scores that the CPU holds at once: 16 MiB of float32, which a last-level cache holds."""


HEAD = 128
"""Channels of the values in one head on CUDA, in half precision: the most that cuDNN's backward takes. On an H100 it is
10 to 18 times as fast in training, and 2 to 4 times in prediction, as the memory-efficient kernel on whole values
(reports/gpu.md)."""


class PositionAttention(nn.Module):
    """PAM: ``gamma * softmax(q k^T) v + x``, without the usual ``1/sqrt(D)`` (DANet, section 3.2; all sources).

    Args:
        channels: C.
        key_channels: D.
        bias: biases of the three projections (mmsegmentation and official: yes; sssegmentation: no).
        attention: ``fused`` never holds the N x N map, in forward or backward; ``reference`` does, in float32.
    """

    def __init__(self, channels: int, key_channels: int, bias: bool = True, attention: Attention = "fused") -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, key_channels, 1, bias=bias)
        self.key = nn.Conv2d(channels, key_channels, 1, bias=bias)
        self.value = nn.Conv2d(channels, channels, 1, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.attention = attention

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        q_BND, k_BND = _positions(self.query(x_BCHW)), _positions(self.key(x_BCHW))
        v_BNC = _positions(self.value(x_BCHW))
        attend = fused_attention if self.attention == "fused" else reference_attention
        out_BNC = attend(q_BND, k_BND, v_BNC)
        return x_BCHW + self.gamma * _to_map(out_BNC, x_BCHW)  # x first: the sum keeps its memory format


def reference_attention(q_BND: Tensor, k_BND: Tensor, v_BNC: Tensor) -> Tensor:
    """``softmax(q k^T) v`` with the explicit map, in float32 at least: ``(B, N, C)``, O(N^2) memory."""
    with _without_autocast(q_BND):
        map_BNN = (_wide(q_BND) @ _wide(k_BND).transpose(1, 2)).softmax(dim=-1)
        return (map_BNN @ _wide(v_BNC)).to(v_BNC.dtype)


def fused_attention(q_BND: Tensor, k_BND: Tensor, v_BNC: Tensor, heads: int | None = None) -> Tensor:
    """``softmax(q k^T) v``: ``(B, N, C)``, O(N) memory forward and backward.

    On CUDA in half precision by cuDNN, in heads of :data:`HEAD` channels; else by PyTorch's memory-efficient kernel. On
    the CPU by :class:`BlockAttention`, which computes the scores once where PyTorch's kernel, which needs values as
    narrow as the keys, computes them C / D times.

    Args:
        heads: parts of the values that share queries and keys, for PyTorch's kernels; None for what suits the device.
            The result does not depend on it but for rounding.
    """
    if heads is None and not q_BND.is_cuda:
        with _without_autocast(q_BND):
            out_BNC: Tensor = BlockAttention.apply(q_BND, k_BND, v_BNC)
            return out_BNC
    C = v_BNC.shape[-1]
    if heads is None:
        half = q_BND.dtype in (torch.float16, torch.bfloat16)
        heads = C // HEAD if half and C % HEAD == 0 else 1
    q_BhND, k_BhND = (x_BND.unsqueeze(1).expand(-1, heads, -1, -1) for x_BND in (q_BND, k_BND))
    if q_BND.is_cuda:  # cuDNN may misread heads that share memory (PyTorch 2.11)
        q_BhND, k_BhND = q_BhND.contiguous(), k_BhND.contiguous()
    out_BhNc = F.scaled_dot_product_attention(
        q_BhND,
        k_BhND,
        v_BNC.reshape(*v_BNC.shape[:2], heads, C // heads).transpose(1, 2),
        scale=1.0,
    )
    return out_BhNc.transpose(1, 2).flatten(2)


class BlockAttention(torch.autograd.Function):
    """``softmax(q k^T) v`` a block of queries at a time, in plain matrix products.

    A block's scores are never more than :data:`BLOCK` elements. Backward computes them again from the logarithm of the
    softmax's denominator, as FlashAttention does: ``p = exp(q k^T - lse)``, ``dv = p^T do``,
    ``ds = p (do v^T - sum(do o))``, ``dq = ds k``, ``dk = ds^T q``.

    In half precision scores, softmax and sums over blocks are float32; the products with the wide values, eight ninths
    of the work, are in the values' precision.
    """

    @staticmethod
    def forward(ctx: Any, q_BND: Tensor, k_BND: Tensor, v_BNC: Tensor) -> Tensor:
        """``(B, N, D)``, ``(B, M, D)`` and ``(B, M, C)`` to ``(B, N, C)``."""
        q_BND, k_BND = _wide(q_BND), _wide(k_BND)
        out_BNC = v_BNC.new_empty((*q_BND.shape[:2], v_BNC.shape[-1]))
        lse_BN1 = q_BND.new_empty((*q_BND.shape[:2], 1))
        for image, rows in _blocks(q_BND, k_BND):
            score_nM = q_BND[image, rows] @ k_BND[image].T
            top_n1 = score_nM.amax(dim=1, keepdim=True)
            weight_nM = score_nM.sub_(top_n1).exp_()
            sum_n1 = weight_nM.sum(dim=1, keepdim=True)
            out_BNC[image, rows] = (weight_nM.to(v_BNC.dtype) @ v_BNC[image]).div_(sum_n1)
            lse_BN1[image, rows] = top_n1 + sum_n1.log()
        ctx.save_for_backward(q_BND, k_BND, v_BNC, out_BNC, lse_BN1)
        return out_BNC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v."""
        (do_BNC,) = gradients
        q_BND, k_BND, v_BNC, out_BNC, lse_BN1 = ctx.saved_tensors
        dq_BND = torch.empty_like(q_BND)
        dk_BND, dv_BNC = torch.zeros_like(k_BND), torch.zeros_like(v_BNC, dtype=q_BND.dtype)
        for image, rows in _blocks(q_BND, k_BND):
            q_nD, k_MD, v_MC, do_nC = q_BND[image, rows], k_BND[image], v_BNC[image], do_BNC[image, rows]
            p_nM = (q_nD @ k_MD.T).sub_(lse_BN1[image, rows]).exp_()
            dv_BNC[image] += p_nM.to(v_MC.dtype).T @ do_nC
            delta_n1 = (_wide(do_nC) * out_BNC[image, rows]).sum(dim=1, keepdim=True)
            ds_nM = _wide(do_nC @ v_MC.T).sub_(delta_n1).mul_(p_nM)
            dq_BND[image, rows] = ds_nM @ k_MD
            dk_BND[image] += ds_nM.T @ q_nD
        return dq_BND, dk_BND, dv_BNC


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _blocks(q_BND: Tensor, k_BND: Tensor) -> list[tuple[int, slice]]:
    step = max(1, BLOCK // k_BND.shape[1])
    return [
        (image, slice(first, first + step))
        for image in range(q_BND.shape[0])
        for first in range(0, q_BND.shape[1], step)
    ]


class ChannelAttention(nn.Module):
    """CAM: ``gamma * softmax(max(E) - E) f + x`` with ``E = f f^T`` over channels.

    The paper writes ``softmax(E)``; every published number was made with the maximum of the row minus the energy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``."""
        f_BCN = x_BCHW.flatten(2)
        map_BCC = _inverted_softmax(f_BCN, f_BCN)
        out_BCN = map_BCC.to(f_BCN.dtype) @ f_BCN
        return x_BCHW + self.gamma * out_BCN.reshape(x_BCHW.shape)


class CompactPositionEncoder(nn.Module):
    """CPAM's gathering centres: the features averaged over 1x1, 2x2, 3x3 and 6x6 grids, each through its own 1x1
    convolution, batch normalisation and ReLU (DRANet: 50 centres).

    In training mode the 1x1 grid leaves one value per image and channel, so a process without synchronised batch
    normalisation needs at least two images (as in the source).
    """

    GRIDS: Final = (1, 2, 3, 6)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
            for _ in self.GRIDS
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the centres ``(B, K, C)``, row by row from the coarsest grid to the finest."""
        grids = [
            conv(adaptive_average_pool(x_BCHW, grid)).flatten(2)
            for conv, grid in zip(self.convs, self.GRIDS, strict=True)
        ]
        return torch.cat(grids, dim=2).transpose(1, 2)


class CompactPositionDecoder(nn.Module):
    """CPAM: every position attends to the centres, ``scale * softmax(q k^T) v + x``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 4, 1)
        self.key = nn.Linear(channels, channels // 4)
        self.value = nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x_BCHW: Tensor, centres_BKC: Tensor) -> Tensor:
        """``(B, C, H, W)`` and ``(B, K, C)`` to ``(B, C, H, W)``."""
        q_BND = _positions(self.query(x_BCHW))
        map_BNK = (q_BND @ self.key(centres_BKC).transpose(1, 2)).softmax(dim=-1)
        v_BKC = self.value(centres_BKC)
        out_BNC = map_BNK.to(v_BKC.dtype) @ v_BKC
        return x_BCHW + self.scale * _to_map(out_BNC, x_BCHW)


class CompactChannelDecoder(nn.Module):
    """CCAM: every channel attends to M gathered channels, ``scale * softmax(max(E) - E) y + x`` with ``E = x y^T``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x_BCHW: Tensor, y_BMHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` and the gathered channels ``(B, M, H, W)`` to ``(B, C, H, W)``."""
        y_BMN = y_BMHW.flatten(2)
        map_BCM = _inverted_softmax(x_BCHW.flatten(2), y_BMN)
        out_BCN = map_BCM.to(y_BMN.dtype) @ y_BMN
        return x_BCHW + self.scale * out_BCN.reshape(x_BCHW.shape)


class CrossLevelGate(nn.Module):
    """CLGD: DRANet's decoder, which gates layer1's features by what both levels say, and joins the levels.

    ``align_corners`` is of the upsampling of the high level (source: true).
    """

    LOW_CHANNELS: Final = 32

    def __init__(self, channels: int, align_corners: bool = True) -> None:
        super().__init__()
        low = self.LOW_CHANNELS
        self.low = conv_bn_relu(channels, low, 3)
        self.cat = conv_bn_relu(channels + low, channels, 3)
        self.gate = nn.Conv2d(channels + low, 1, 1)
        self.out = conv_bn_relu(channels, channels, 3)
        self.gamma = nn.Parameter(torch.ones(()))
        self.align_corners = align_corners

    def forward(self, low_BCHW: Tensor, high_BChw: Tensor) -> Tensor:
        """``(B, C, H, W)`` and the coarser ``(B, C, h, w)`` to ``(B, C, H, W)``."""
        low = self.low(low_BCHW)
        high = F.interpolate(high_BChw, low.shape[2:], mode="bilinear", align_corners=self.align_corners)
        gate_B1HW = torch.sigmoid(self.gate(torch.cat((low, high), dim=1)))
        refined = self.gamma * gate_B1HW * low
        result: Tensor = self.out(self.cat(torch.cat((refined, high), dim=1)))
        return result


class Clustering(nn.Module):
    """Cosine similarities of every position to K running cluster centres (ClusterDANet).

    The centres are buffers, not parameters. In training mode each call moves them towards the mean of the features
    softly assigned to them, weighted by counts (Sculley's mini-batch k-means): ``m = softmax(100 s)`` over clusters,
    ``n_k = sum_i m_ik``, ``c_k += n_k``, ``V_k += (n_k / c_k) (mean_k - V_k)``. The output is computed with the centres
    before the step, and no gradient flows into them.

    The source runs on one GPU. With several processes each sees its own share of the batch, unless ``total`` sums over
    them (:func:`danet.training.batch_norm.synchronise_batch_norm`).
    """

    SHARPNESS: Final = 100.0

    V_buffer: Tensor
    V_count_buffer: Tensor

    def __init__(self, channels: int, clusters: int) -> None:
        super().__init__()
        self.total: Callable[[Tensor], Tensor] = lambda statistic: statistic
        """Sums a statistic of the batch over all processes."""
        # The source's fixed start; RandomState's stream is frozen by NumPy, so it is the same everywhere.
        start = np.random.RandomState(1).randn(clusters, channels).astype(np.float32)
        self.register_buffer("V_buffer", F.normalize(torch.tensor(start), dim=-1))
        self.register_buffer("V_count_buffer", torch.ones(clusters, dtype=torch.float64))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """``(B, C, H, W)`` to similarities in [-1, 1], ``(B, K, H, W)``, at least float32."""
        with _without_autocast(x_BCHW):
            wide = torch.promote_types(x_BCHW.dtype, torch.float32)
            u_PC = F.normalize(_positions(x_BCHW).flatten(0, 1).to(wide), dim=-1)
            # A copy, because the update below writes to what backward would read.
            centres_KC = F.normalize(self.V_buffer.to(wide, copy=True), dim=-1)
            similarity_PK = u_PC @ centres_KC.T
            if self.training:
                self._update(u_PC.detach(), similarity_PK.detach())
            B, _, H, W = x_BCHW.shape
            return similarity_PK.reshape(B, H, W, -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _update(self, u_PC: Tensor, similarity_PK: Tensor) -> None:
        assignment_PK = torch.softmax(self.SHARPNESS * similarity_PK, dim=-1)
        count_K = self.total(assignment_PK.sum(0))
        # A cluster to which nothing is assigned keeps its centre; the source would divide 0 by 0 here.
        mean_KC = self.total(assignment_PK.T @ u_PC) / count_K.clamp_min(torch.finfo(count_K.dtype).tiny).unsqueeze(1)
        total_K = self.V_count_buffer + count_K.double()
        step_K1 = (count_K.double() / total_K).to(mean_KC.dtype).unsqueeze(1)
        self.V_buffer.copy_((1 - step_K1) * self.V_buffer + step_K1 * mean_KC)
        self.V_count_buffer.copy_(total_K)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Convolution without bias at the input's size, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def adaptive_average_pool(x_BCHW: Tensor, grid: int) -> Tensor:
    """Averages over ``grid x grid`` cells that cover the map, ``(B, C, grid, grid)``.

    PyTorch's adaptive pooling has no deterministic backward on CUDA; when determinism is asked for, the same averages
    are taken by two small matrix products.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return F.adaptive_avg_pool2d(x_BCHW, grid)
    with _without_autocast(x_BCHW):
        wide = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        rows_gH, columns_gW = (_pooling_matrix(size, grid, wide) for size in x_BCHW.shape[2:])
        return (rows_gH @ wide @ columns_gW.T).to(x_BCHW.dtype)


def _pooling_matrix(size: int, grid: int, like: Tensor) -> Tensor:
    """Row g averages positions ``floor(g size / grid)`` up to ``ceil((g + 1) size / grid)``, exclusive."""
    cell = torch.arange(grid, device=like.device).unsqueeze(1)
    start, stop = cell * size // grid, ((cell + 1) * size + grid - 1) // grid
    position = torch.arange(size, device=like.device)
    inside = ((position >= start) & (position < stop)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def _inverted_softmax(x_BCN: Tensor, y_BMN: Tensor) -> Tensor:
    """``softmax(rowmax(E) - E)`` of ``E = x y^T`` in float32: ``(B, C, M)``.

    E sums N squares, which overflows half precision, and its rounding in bfloat16 is far larger than the differences
    that the softmax resolves.
    """
    with _without_autocast(x_BCN):
        wide = torch.promote_types(x_BCN.dtype, torch.float32)
        energy_BCM = x_BCN.to(wide) @ y_BMN.to(wide).transpose(1, 2)
        return (energy_BCM.amax(dim=-1, keepdim=True) - energy_BCM).softmax(dim=-1)


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # the meta device has none


def _positions(x_BCHW: Tensor) -> Tensor:
    """``(B, C, H, W)`` to contiguous ``(B, N, C)``; free for channels_last."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _to_map(x_BNC: Tensor, like_BCHW: Tensor) -> Tensor:
    """``(B, N, C)`` to ``(B, C, H, W)`` (channels_last strides)."""
    B, _, H, W = like_BCHW.shape
    return x_BNC.reshape(B, H, W, -1).permute(0, 3, 1, 2)
