"""What a training computes on, in which precision, and with how many processes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from transvert.io import InputError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

Norm = nn.BatchNorm2d | nn.BatchNorm3d


def launch(device: str, kind: str) -> Fabric:
    """Joins the processes that torchrun started, one a GPU or any number on CPUs; without torchrun there is one.

    Args:
        device: as `accelerator` takes it.
        kind: as `precision` takes it.

    Raises:
        InputError: a device or a precision that is not there, or more processes than GPUs.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    # torchrun tells each process how many it started on this machine, and on how many machines.
    here, machines = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    name = accelerator(device)
    if name == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"{here} processes were started for {torch.cuda.device_count()} GPU here; start one for each.")
    # Running statistics are each process's own until `average_statistics`. (torch 2.13 has another word for it.)
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    own: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    fabric = Fabric(
        accelerator=name,
        devices=here,
        num_nodes=machines,
        precision=precision(kind),
        strategy=DDPStrategy(**own) if here * machines > 1 else "auto",
    )
    fabric.launch()
    return fabric


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


def norms(network: nn.Module) -> dict[Norm, float]:
    """The batch normalisations of a network, and how far a batch moves the running statistics of each."""
    return {layer: layer.momentum or 0.0 for layer in network.modules() if isinstance(layer, Norm)}


def pace_statistics(layers: dict[Norm, float], draw: int, draws: int) -> None:
    """Lets running statistics move once in `draws` draws, towards the draws' mean, as if made by as many processes."""
    for layer, momentum in layers.items():
        layer.momentum = momentum / (draws - (draws - 1 - draw) * momentum)


@torch.no_grad()
def average_statistics(fabric: Any, layers: Iterable[Norm]) -> None:
    """Gives all processes the mean of their running statistics, in one exchange.

    In training these are moved by a fixed share of each batch's and read by nobody, so that their mean at an epoch's
    end is that of a mean after every step.
    """
    own: list[Any] = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    if own and fabric.world_size > 1:
        mean = fabric.all_reduce(torch.cat(own))
        for buffer, values in zip(own, mean.split([len(buffer) for buffer in own]), strict=True):
            buffer.copy_(values)


def _computes_bf16() -> bool:
    # The only way torch tells; absent on builds for other processors, where bf16 convolutions are slow anyway.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
