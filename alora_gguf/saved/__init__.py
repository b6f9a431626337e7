"""Saved sessions: the file, and what must fit for one to be restored."""
