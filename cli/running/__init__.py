"""The work of `alora-gguf run`: conversations in, answers out. Prints nothing but problems."""
