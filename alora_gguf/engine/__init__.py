"""The native library, its context, and who may use which cells when. Knows no text."""
