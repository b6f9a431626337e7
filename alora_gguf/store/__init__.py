"""The user's adapters and bases by name."""
