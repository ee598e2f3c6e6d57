"""Worked cases run in both precisions."""

import jax
import pytest


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param
