"""Time of our weight matching by part, timed from the outside: assignments, products, the remainder."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_, torch.ops.aten.bmm)


class Parts(TorchDispatchMode):
    """Times every assignment, and every matrix product outside them, that this thread makes in a block."""

    def __enter__(self) -> Parts:
        self.assignments, self.solving = 0, False
        self.seconds = {"assignment": 0.0, "products": 0.0}
        loaded = [module for name, module in sys.modules.items() if name.startswith("weightspace.matching")]
        self.users = [(module, module.assign) for module in loaded if hasattr(module, "assign")]
        for module, assign in self.users:
            module.assign = self._timed(assign)
        return super().__enter__()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        for module, assign in self.users:
            module.assign = assign

    def _timed(self, assign: Any) -> Any:
        def timed(*args: Any, **options: Any) -> Tensor:
            start, self.solving = time.perf_counter(), True
            result = assign(*args, **options)
            self.seconds["assignment"] += time.perf_counter() - start
            self.assignments, self.solving = self.assignments + 1, False
            return result

        return timed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in PRODUCTS and not self.solving:
            self.seconds["products"] += time.perf_counter() - start
        return result

    def shares(self, seconds: float) -> dict[str, Any]:
        """Return the number of assignments, and both parts as shares of a whole."""
        shares = {f"{name}_share": part / seconds for name, part in self.seconds.items()}
        return {"assignments": self.assignments, **shares}
