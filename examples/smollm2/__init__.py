"""Five intrinsics on a real base, SmolLM2-135M-Instruct: their data, training and evaluation."""
