"""Networks in plain PyTorch; everything else of the package runs without them."""
