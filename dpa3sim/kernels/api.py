"""What a kernel can be asked for."""

from __future__ import annotations

from typing import Literal

Matmul = Literal["full", "tf32", "bf16"]
"""How products of edges and angles round their inputs: not at all, to 10 bits, to 7 bits."""
