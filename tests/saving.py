"""Another name of tests.support.saving."""

import sys

from tests.support import saving

sys.modules[__name__] = saving
