"""From logits to text: sampling, constraints, forks. Knows no templates and no contracts."""
