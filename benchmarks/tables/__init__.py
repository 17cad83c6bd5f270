"""Scripts that measure the tables of `transvert/tables`."""
