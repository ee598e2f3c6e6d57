"""Letters to shapes and layouts."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from gptjax import dims

ROWS = ("data", "fsdp", "expert")


def test_letters_spell_a_shape():
    # "DNH" with D 8, N 2, H 4; "1" needs no size
    assert dims.shape("DNH", {"D": 8, "N": 2, "H": 4}) == (8, 2, 4)
    assert dims.shape("B1", {"B": 3}) == (3, 1)


@pytest.mark.parametrize(
    ("letters", "stored", "used"),
    [
        ("LDNH", P(None, "fsdp", "tensor", None), P(None, None, "tensor", None)),
        ("LDKH", P(None, "fsdp", "tensor", None), P(None, None, "tensor", None)),
        ("LFD", P(None, "tensor", "fsdp"), P(None, "tensor", None)),
        ("VD", P("tensor", "fsdp"), P("tensor", None)),
        ("EDH", P("expert", "fsdp", None), P("expert", None, None)),
        ("1", P(None), P(None)),
    ],
)
def test_parameters_are_stored_over_fsdp_and_used_gathered(letters, stored, used):
    assert dims.param_spec(letters) == stored
    assert dims.gathered_spec(letters) == used


@pytest.mark.parametrize(
    ("letters", "stored"),
    [
        ("LDNH", P(None, ("fsdp", "expert"), "tensor", None)),
        ("D", P(("fsdp", "expert"))),
        ("LEDF", P(None, "expert", "fsdp", "tensor")),
        ("LDE", P(None, "fsdp", "expert")),
    ],
)
def test_what_experts_share_is_stored_over_their_axis_too(letters, stored):
    sizes = {"data": 1, "fsdp": 2, "expert": 4, "context": 1, "tensor": 1}
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))):
        assert dims.param_spec(letters) == stored


@pytest.mark.parametrize(
    ("letters", "spec"),
    [
        ("BTNH", P(ROWS, "context", "tensor", None)),
        ("BTV", P(ROWS, "context", "tensor")),
        ("LBKSH", P(None, ROWS, "tensor", None, None)),
        ("BCT", P(ROWS, None, "context")),
        ("BR", P(ROWS, None)),
        ("", P()),
    ],
)
def test_activations_spread_rows_positions_and_heads(letters, spec):
    assert dims.act_spec(letters) == spec


def test_a_single_position_is_not_spread_while_decoding():
    assert dims.act_spec("BTD", decoding=True) == P(ROWS, None, None)


def test_an_unknown_letter_is_named():
    with pytest.raises(ValueError, match="dimension 'X' of 'DX' has no layout"):
        dims.param_spec("DX")
    with pytest.raises(ValueError, match="dimension 'P' of 'PD' has no layout"):
        dims.param_spec("PD")  # a prompt position is an activation's dimension


@pytest.mark.parametrize("letters", ["NK", "FV", "DD", "NF"])
def test_two_dimensions_on_one_mesh_axis_are_refused(letters):
    with pytest.raises(ValueError, match=f"two dimensions of '{letters}' land on mesh axis '(tensor|fsdp)'"):
        dims.param_spec(letters)


def test_every_axis_that_a_layout_names_exists():
    entries = [dims.param_spec(letter)[0] for letter in "DNKFVEHLTG1"]
    entries += [dims.act_spec(letter)[0] for letter in "BTNKFVSDHLGPRC1"]
    axes = {axis for entry in entries if entry for axis in ((entry,) if isinstance(entry, str) else entry)}
    assert axes == set(dims.MESH_AXES)
