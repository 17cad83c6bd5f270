"""Studies of the network: ablation, comparison, robustness, resolution, held-out people."""
