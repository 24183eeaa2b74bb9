"""What several studies are tested with."""

from tests.studied import frame, layers, model, sweep, work  # noqa: F401
