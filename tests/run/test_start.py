"""What starting JAX sets in the process: seen from a process of its own."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from gptjax.run.start import start_jax
start_jax()
import jax, jax.numpy as jnp

@jax.jit
def step(x, y):  # 128 MB between its two products
    return (jnp.sin(x @ y) @ y.T).sum()

x, y = jnp.ones((32768, 8)), jnp.ones((8, 1024))
faults = []
for _ in range(30):
    step(x, y).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[9])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_steps_reuse_the_memory_of_the_step_before():
    faults = int(subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True).stdout)
    assert faults < 20 * 32768 / 2, "pages of 4 kB that the kernel had to clear anew"
