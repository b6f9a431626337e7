"""Another name of tests.support.chats."""

import sys

from tests.support import chats

sys.modules[__name__] = chats
