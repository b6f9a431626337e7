"""Another name of tests.support.tiny_base."""

import sys

from tests.support import tiny_base

sys.modules[__name__] = tiny_base
