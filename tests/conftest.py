"""Makes tests/support importable as `support` (pytest puts this file's directory on the path)."""
