"""Training adapters on the GGUF that will serve them: `alora-gguf train` (the extra `train`)."""
