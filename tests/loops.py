"""Another name of tests.support.loops."""

import sys

from tests.support import loops

sys.modules[__name__] = loops
