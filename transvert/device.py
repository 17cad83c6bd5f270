"""What a training computes on, and in which precision."""

from __future__ import annotations

from typing import Any

import torch

from transvert.files import InputError


def accelerator(wanted: str) -> str:
    """Fabric's name of a device; "auto" takes a CUDA GPU where there is one and the CPU elsewhere."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise InputError(f"'{wanted}' is not a device; use auto, cpu or cuda.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA GPU that torch can use here; train with device 'auto' or 'cpu'.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def precision(wanted: str) -> Any:
    """Fabric's name of a precision; "auto" asks whether this machine computes bfloat16 at speed."""
    if wanted not in ("auto", "32", "bf16"):
        raise InputError(f"'{wanted}' is not a precision; use auto, 32 or bf16.")
    if wanted == "auto":
        fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else _computes_bf16()
        wanted = "bf16" if fast else "32"
    return "bf16-mixed" if wanted == "bf16" else "32-true"


def _computes_bf16() -> bool:
    # The only way torch tells; absent on builds for other processors, where bf16 convolutions are slow anyway.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
