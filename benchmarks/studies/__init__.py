"""Studies: ablation, comparison networks, robustness and resolution."""
