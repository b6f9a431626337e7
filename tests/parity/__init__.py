"""What the package computes against what PEFT computes, family by family."""
