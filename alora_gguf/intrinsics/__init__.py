"""What an intrinsic expects and answers: its contract (io.yaml), and what follows from it.

A contract turns a conversation into a request and a reply into a value. No model is needed for
that, and none is loaded here.
"""

from __future__ import annotations

from .contract import Contract, Outcome, Request, load_contract, rewrite, transform

__all__ = ["Contract", "Outcome", "Request", "load_contract", "rewrite", "transform"]
