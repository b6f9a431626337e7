"""What mlx-lm saved: an adapter's configuration and its weights, as a LoRA of PEFT's would be."""
