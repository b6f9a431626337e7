"""The demo model: a small chat model and five intrinsics, from data to GGUF files."""
