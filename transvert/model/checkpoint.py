"""What a training keeps in its folder: written whole or not at all, and read as if a stranger had written it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from torch import nn

from transvert.io import InputError, atomic_path
from transvert.model import networks


def load_checkpoint(
    fabric: Any, folder: Path, state: dict[str, Any], identity: dict[str, Any], resume: bool
) -> tuple[int, list[dict[str, float]]]:
    """Prepares a training's folder, and puts the checkpoint in it into networks and optimisers.

    The first process alone reads and writes, so that no other finds another state.

    Args:
        fabric: of the processes that train.
        folder: which need not exist. What a killed training was writing there is removed.
        state: the networks and optimisers by their names in the checkpoint.
        identity: what must be equal for a training to be the same, of plain values.
        resume: whether to look for a checkpoint.

    Returns:
        The steps that are done and the rows of the curve.

    Raises:
        InputError: a checkpoint that is none, that of another training or does not fit; or weights that are not of
            this package, which the training would replace.
    """
    found: dict[str, Any] | InputError | None = None
    if fabric.is_global_zero:
        try:
            _clear(folder)
            found = _read(folder / "checkpoint.pt", identity) if resume else None
        except InputError as error:
            found = error
    found = fabric.broadcast(found)
    if isinstance(found, InputError):
        raise found
    if found is None:
        return 0, []
    try:
        for name, part in state.items():
            part.load_state_dict(found[name])
            if not isinstance(part, nn.Module):
                _check_shapes(part)
        return found["step"], found["curve"]
    except Exception as error:  # noqa: BLE001 whatever a foreign state makes them raise
        raise InputError(
            f"{folder / 'checkpoint.pt'} does not fit this version's networks ({type(error).__name__}); move it away."
        ) from None


def save_checkpoint(
    folder: Path, state: dict[str, Any], step: int, curve: list[dict[str, float]], identity: dict[str, Any]
) -> None:
    """Writes `curve.csv` and `checkpoint.pt`; see `begin` for the arguments.

    Raises:
        InputError: they can't be written; the former ones stay.
    """
    # The curve first: a training that is killed in between makes the last epoch again, and with it this row.
    with writing(folder / "curve.csv"), atomic_path(folder / "curve.csv") as temporary:
        pd.DataFrame(curve).to_csv(temporary, index=False)
    parts = {name: part.state_dict() for name, part in state.items()}
    write_tensors(folder / "checkpoint.pt", parts | {"step": step, "curve": curve, "identity": identity})


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values.

    Raises:
        InputError: they can't be written; what was there before stays.
    """
    with writing(path), atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what goes wrong while `path` is written, such as a full disk, into a sentence."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch has its own word for it, after the system's.
        why = error.__context__ if isinstance(error.__context__, OSError) else error
        raise InputError(
            f"{path} can't be written ({why}); make room and train again: it goes on from the last checkpoint."
        ) from error


def _clear(folder: Path) -> None:
    """Removes what a killed training was writing, and refuses weights of somebody else."""
    for ending in (".pt", ".csv", ".safetensors"):
        for leftover in folder.glob(f".writing-*{ending}"):
            leftover.unlink(missing_ok=True)
    weights = folder / "weights.safetensors"
    if weights.exists():
        try:
            networks.load_weights(weights)
        except InputError as error:
            raise InputError(f"Training would replace {weights}, so move it away: {error}") from None


def _read(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """A checkpoint on the CPU; None where there is none."""
    if not path.exists():
        return None
    try:
        # weights_only: tensors and plain values, never a stranger's pickled code.
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        ours, theirs = _flat(identity), _flat(saved["identity"])
    except Exception as error:  # noqa: BLE001 torch raises whatever unpickling meets
        raise InputError(
            f"{path} is not a checkpoint of this package ({type(error).__name__}); move it away."
        ) from None
    odd = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
    if odd:
        raise InputError(
            f"{path} was made with another {', '.join(odd)}; train under another run or into another folder, or start over with resume off (--fresh)."
        )
    return saved


def _check_shapes(optimiser: Any) -> None:
    """An optimiser takes any state, and stumbles in its next step."""
    for parameter, values in optimiser.state.items():
        if any(getattr(value, "shape", ()) not in ((), parameter.shape) for value in values.values()):
            raise ValueError("a state of another shape than its parameter's")


def _flat(nested: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat
