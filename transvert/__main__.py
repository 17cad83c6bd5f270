"""`python -m transvert`, which torchrun needs."""

from transvert.cli import main

main()
