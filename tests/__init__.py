import sys

# The asserts of helper modules say what they saw, like those of tests. Processes that benchmarks
# measure don't import pytest.
if pytest := sys.modules.get("pytest"):
    pytest.register_assert_rewrite("tests.contract", "tests.live")
