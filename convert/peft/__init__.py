"""What PEFT saved: an adapter's configuration, its weights and what switches it on."""
