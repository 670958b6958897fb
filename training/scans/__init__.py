"""Where scenes to learn from come from: one module per source."""
