"""Size, time and memory of the networks: `make bench-networks` writes networks.csv and networks.md."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import describe_run, markdown_table, resident_bytes, write_results
from benchmarks.studies import comparison_networks  # noqa: F401 registers the networks
from transvert.model.networks import NETWORKS, build_network
from transvert.model.predict import predict
from transvert.model.train import segmentation_loss

HERE = Path(__file__).resolve().parent
BATCH = 6
VERTEBRAE = 17
"""Vertebrae of a spine from T1 to L5."""

YARDSTICK = "twod_permute_concat"
COLUMNS = [
    "network",
    "parameters",
    "multiply_adds",
    "rounds",
    "step_ms",
    "samples_per_s",
    "ratio_to_port",
    "spine_ms",
    "forward_ms",
    "predict_gib",
    "train_gib",
]


def main() -> None:
    options = argparse.ArgumentParser(description="Networks: size, time and memory, side by side.")
    options.add_argument("--out", type=Path, default=HERE, help="folder of networks.csv and networks.md")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--memory", choices=NETWORKS, help="print the peak memory of one network and stop")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.memory:
        print(*measure_memory(chosen.memory))
        return
    load = os.getloadavg()[0]
    table = measure({name: _built(name) for name in NETWORKS}, chosen.rounds)
    print("Times are measured. Memory is next; other work may run now.", file=sys.stderr, flush=True)
    memory = {name: memory_alone(name, chosen.threads) for name in NETWORKS}
    table[["predict_gib", "train_gib"]] = [memory[name] for name in table.network]
    measured = as_markdown(table, f"{describe_run(load, ['torch'])} {chosen.threads} threads.")
    write_results(chosen.out, "networks", table[COLUMNS], measured)
    print(measured)


def measure(networks: dict[str, nn.Module], rounds: int) -> pd.DataFrame:
    """Sizes and times, one row per network. The networks take turns."""
    train = {name: Trainer(network) for name, network in networks.items()}
    images = _images(VERTEBRAE).numpy()
    steps: dict[str, list[float]] = {name: [] for name in networks}
    spines: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(rounds + 1):
        for name, network in networks.items():
            step, spine = _seconds(train[name].step), _seconds(lambda network=network: predict(network, images))
            if number:  # The first round warms up.
                steps[name].append(step)
                spines[name].append(spine)
    rows = []
    for name, network in networks.items():
        step, spine = statistics.median(steps[name]), statistics.median(spines[name])
        rows.append(
            {
                "network": name,
                "parameters": sum(p.numel() for p in network.parameters()),
                "multiply_adds": count_multiply_adds(network),
                "rounds": rounds,
                "step_ms": 1000 * step,
                "samples_per_s": BATCH / step,
                "ratio_to_port": statistics.median(steps[YARDSTICK]) / step,
                "spine_ms": 1000 * spine,
                "forward_ms": 1000 * spine / VERTEBRAE,
            }
        )
    return pd.DataFrame(rows)


class Trainer:
    """Trains one network on the same batch: forward, loss, backward, AdamW."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
        self.images = _images(BATCH)
        self.targets = torch.zeros(BATCH, 1, 64, 64, 64)
        self.targets[..., 20:44, 20:44, 24:40] = 1

    def step(self) -> None:
        self.network.train()
        loss, _ = segmentation_loss(self.network(self.images), self.targets)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()


def count_multiply_adds(network: nn.Module) -> int:
    """Multiply-adds of convolutions and matrix products in the forward pass of one sample."""
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(_images(1))
    return counter.get_total_flops() // 2


def memory_alone(name: str, threads: int) -> tuple[float, float]:
    """`measure_memory` in its own process, GiB."""
    command = [sys.executable, "-m", "benchmarks.speed.networks", "--memory", name, "--threads", str(threads)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=True)
    predicting, training = map(float, done.stdout.split())
    return predicting, training


def measure_memory(name: str) -> tuple[float, float]:
    """Peak memory of this process after predicting a spine, and after two training steps, GiB. Linux only."""
    network = _built(name)
    predict(network, _images(VERTEBRAE).numpy())
    predicting = resident_bytes("VmHWM")
    trainer = Trainer(network)
    for _ in range(2):
        trainer.step()
    return predicting / 2**30, resident_bytes("VmHWM") / 2**30


def as_markdown(table: pd.DataFrame, run: str) -> str:
    """The measured part of networks.md."""
    heads = [
        "network",
        "parameters",
        "multiply-adds",
        "training step",
        "samples/s",
        "÷ the port's",
        "forward per sample",
    ]
    heads += ["spine of 17", "memory, prediction", "memory, training"]
    rows = [
        [
            row.network,
            f"{row.parameters / 1e6:.2f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            f"{row.step_ms:.0f} ms",
            f"{row.samples_per_s:.1f}",
            f"{row.ratio_to_port:.1f}",
            f"{row.forward_ms:.0f} ms",
            f"{row.spine_ms / 1000:.2f} s",
            f"{row.predict_gib:.2f} GiB",
            f"{row.train_gib:.2f} GiB",
        ]
        for row in table.itertuples()
    ]
    return f"{run} Medians of {table.rounds.iloc[0]} rounds.\n\n{markdown_table(heads, rows)}"


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_network(name)


def _images(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, 2, 4, 64, 64)).astype(np.float32))


def _seconds(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
