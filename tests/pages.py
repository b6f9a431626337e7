"""Another name of tests.support.pages."""

import sys

from tests.support import pages

sys.modules[__name__] = pages
