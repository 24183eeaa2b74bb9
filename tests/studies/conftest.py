"""What several studies are tested with."""

from tests.studied import frame, layers, model, robustness, sweep  # noqa: F401
