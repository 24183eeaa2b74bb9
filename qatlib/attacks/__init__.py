"""Attacks on a span model, and the defences that they are tested against."""
