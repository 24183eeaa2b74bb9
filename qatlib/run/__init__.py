"""The engine: stages, keys, provenance, papermill."""
