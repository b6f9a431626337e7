"""Conversations in messages: templates, replies, intrinsics. Knows no cells and no batches."""
