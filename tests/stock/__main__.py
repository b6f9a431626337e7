"""Builds the stock library, so that the tests that need it start at once."""

from tests.stock import stock_library_dir

print(stock_library_dir())
