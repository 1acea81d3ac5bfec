"""numpy, imported at the first use: the modules of this package can be imported without the extra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
else:

    class _Numpy:
        def __getattr__(self, name: str) -> Any:
            from trace_core._lazy import require

            value = getattr(require("numpy", extra="milp"), name)
            setattr(self, name, value)
            return value

    np = _Numpy()

__all__ = ["np"]
