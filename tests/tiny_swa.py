"""Another name of tests.support.tiny_swa."""

import sys

from tests.support import tiny_swa

sys.modules[__name__] = tiny_swa
