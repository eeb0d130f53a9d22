"""Linear layers whose weights are laid out for the CPU's matrix instructions once, instead of at every call. Any architecture.

Only bfloat16 is packed: float32 calls of a few rows get slower (0.5 to 1.1 times the speed, measured on 135M shapes).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from millrace_server.engine import native
from millrace_server.engine.native import Library, PackedWeight

ROWS_HINT = 8
"""Rows for which the layout is chosen. It serves one row as well as hundreds; a layout chosen for one row serves nothing else."""


class PackedLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """Multiplies by a weight [out, in] in oneDNN's own layout, which only oneDNN can read: it neither moves nor saves."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS_HINT)

    def forward(self, rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product


class NativeLinear(nn.Module):  # type: ignore[misc]
    """The same by the compiled library; a row's result does not depend on the other rows."""

    def __init__(self, library: Library, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._library = library
        self.weight: PackedWeight = library.pack(weight, bias)
        self.out_features = self.weight.outputs

    def forward(self, rows: Tensor) -> Tensor:
        return self._library.linear(rows, self.weight)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether packing pays for weights of this type on this device."""
    native: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type == "cpu" and dtype is torch.bfloat16 and native


def pack(model: Any) -> None:  # noqa: ANN401 - transformers is untyped
    """Replace every bfloat16 linear layer, one by one, so that at most one of them is in memory twice.

    A weight that is also the embedding stays there: a tied head costs one more copy. Subclasses of nn.Linear may compute something
    else and stay as they are.
    """
    done: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if layer not in done and type(layer) in (nn.Linear, Conv1D) and layer.weight.dtype is torch.bfloat16:
                weight = layer.weight.t() if type(layer) is Conv1D else layer.weight
                done[layer] = _packed(weight, layer.bias)
                # `done` keeps the layer's identity; its weight is released here.
                layer.weight = None
            if layer in done:
                setattr(parent, name, done[layer])


def _packed(weight: Tensor, bias: Tensor | None) -> nn.Module:
    library = native.library()
    if library is None or weight.shape[1] % native.PANEL:
        return PackedLinear(weight, bias)
    return NativeLinear(library, weight, bias)
