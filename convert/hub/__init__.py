"""A hub's adapters and models: what a reference means, and fetching no more than is needed."""
