"""What is judged: real answers of small models."""

from tests.studied import frame, layers, model, robustness, sweep  # noqa: F401
