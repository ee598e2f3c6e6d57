"""The worked cases of tests/golden/objectives.json and how near a value has to be to them."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "objectives.json").read_text())["cases"]


def close(actual, expected, dtype):
    tolerance = 1e-9 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


def far(actual, wrong):
    assert not np.allclose(np.asarray(actual), np.asarray(wrong), rtol=1e-3, atol=1e-3)


def case(name, dtype):
    found = GOLDEN[name]

    def array(key, kind=None):
        return jnp.asarray(found["inputs"][key], kind or dtype)

    return array, found["expected"], found["inputs"]
