"""Every test runs on eight simulated CPU devices, with rank promotion and warnings as errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from gptjax.run.mesh import MeshConfig, make_mesh

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_device():
    """A mesh of a single device, set as the current one."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh
