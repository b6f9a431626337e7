"""What works on Ray."""
