"""What learning without labels is worth, measured with labels: the only place to read them here."""
