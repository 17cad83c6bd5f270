"""Speed and accuracy beside the peers; README.md says how to run what."""
