"""What a conversion needs to know of the base: its tensors and its vocabulary."""
