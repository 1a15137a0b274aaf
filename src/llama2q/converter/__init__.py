"""From Meta's checkpoint to a `.l2q` file."""
