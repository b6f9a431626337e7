"""What the standalone program begins with: `make program`."""

from alora_gguf.__main__ import main

main()
