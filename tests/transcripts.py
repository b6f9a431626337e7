"""Another name of tests.support.transcripts."""

import sys

from tests.support import transcripts

sys.modules[__name__] = transcripts
