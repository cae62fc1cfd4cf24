"""Detection of tracing: whether an operation runs eagerly, or is recorded, batched, or run on shapes alone.

``torch.compiler.is_compiling`` only knows ``torch.compile`` and ``torch.export``. Code that branches on values, or on
the number of rows, would be baked into traces of ``torch.jit.trace``, the older ONNX exporter, ``make_fx`` or
``torch.fx.symbolic_trace``, and fails under ``torch.func.vmap`` and on the meta device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.jit._trace import is_tracing
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_PLAIN = (Tensor, torch.nn.Parameter)


def runs_eagerly(tensor: Any) -> bool:
    """Return whether code may depend on the values of a tensor, because only this call uses the result."""
    if torch.compiler.is_compiling() or is_tracing():
        return False
    return (
        type(tensor) in _PLAIN  # not a torch.fx proxy, nor a fake, functional or distributed tensor
        and not tensor.is_meta
        and not is_in_torch_dispatch_mode()
        and torch._ops._len_torch_dispatch_stack_pre_dispatch() == 0
        and peek_interpreter_stack() is None
        and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
    )
