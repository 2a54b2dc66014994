import pytest

# The asserts of helper modules say what they saw, like those of tests.
pytest.register_assert_rewrite("tests.contract", "tests.live")
