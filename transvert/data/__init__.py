"""Data sets: manifests, fetching, subjects, vertebra samples and the sample store."""
