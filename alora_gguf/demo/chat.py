"""How the demo model's conversations are written: Granite 3's turns, documents as roles."""

from __future__ import annotations

from typing import Final

END_OF_TURN: Final = "<|end_of_text|>\n"


def role_marker(role: str) -> str:
    """What begins a turn."""
    return f"<|start_of_role|>{role}<|end_of_role|>"


def turn(role: str, content: str) -> str:
    """A whole turn; document number n has the role "document n"."""
    return f"{role_marker(role)}{content}{END_OF_TURN}"
