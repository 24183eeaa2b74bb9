"""Options of quantizers that several test modules share."""

EVERY_OPTION = {
    "weights": "per_group",
    "group_size": 16,
    "clipping": "mse",
    "rotation": "hadamard",
    "grid": "midrise",
    "nested": True,
}
"""All that differs from the default at once."""
