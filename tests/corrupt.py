"""Another name of tests.support.corrupt."""

import sys

from tests.support import corrupt

sys.modules[__name__] = corrupt
