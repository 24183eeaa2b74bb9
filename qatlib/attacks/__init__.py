"""Attacks on a span model, and the defences they are judged against."""
