"""Classical instance segmentation without learning, to compare with: one module per method."""
