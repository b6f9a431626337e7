"""The parts of native/upgrade.py, which moves the project to another release of upstream."""
