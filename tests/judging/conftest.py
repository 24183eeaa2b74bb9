"""What is judged: real answers of small models."""

from tests.studied import frame, layers, model, sweep, work  # noqa: F401
