"""Another name of tests.support.tiny_hybrid."""

import sys

from tests.support import tiny_hybrid

sys.modules[__name__] = tiny_hybrid
