"""Extractive question answering, the task: data, windows, spans, scores."""
