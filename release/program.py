"""What the standalone program begins with: release/program.spec."""

from alora_gguf.__main__ import main

main()
