"""GGUF files: headers, adapters, bases, inspection. Knows no llama.cpp."""
