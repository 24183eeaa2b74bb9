"""Computes tables and verdicts from kept scores."""
