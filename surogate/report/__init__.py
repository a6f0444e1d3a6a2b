"""A run, or several side by side, as one HTML page that opens without a network: `surogate report`. No torch."""
