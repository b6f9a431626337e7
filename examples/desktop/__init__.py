"""A small desktop program: a window on a conversation, which stays from one run to the next."""
