"""The alphabet: one letter per kind of array dimension, the same in names, einsum equations, shapes and layouts.

B batch, T position, S attended position, D model width, N query head, K key-value head, H head width, F hidden width,
V vocabulary, L layer (stacked), E expert, G query heads per key-value head, P prompt position,
R response position, C candidate (ranked response; expert chosen by a token), M row of an expert, 1 a dimension of
size one.
"""

from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec, get_abstract_mesh

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")

_PARAM: dict[str, str | tuple[str, ...] | None] = {
    "N": "tensor",
    "K": "tensor",
    "F": "tensor",
    "V": "tensor",
    "E": "expert",
    **dict.fromkeys("HLTG1"),
}
_ACT: dict[str, str | tuple[str, ...] | None] = {
    "B": BATCH_AXES,
    "T": "context",
    "N": "tensor",
    "K": "tensor",
    "F": "tensor",
    "V": "tensor",
    **dict.fromkeys("SDEHLGPRC1"),
}


def shape(letters: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The array shape that `letters` spell: shape("DNH", {"D": 8, "N": 2, "H": 4}) == (8, 2, 4)."""
    return tuple(1 if letter == "1" else sizes[letter] for letter in letters)


def param_spec(letters: str, shape: Sequence[int] | None = None) -> PartitionSpec:
    """The layout of a stored parameter: "DNH" -> P("fsdp", "tensor", None).

    What experts share is spread over `fsdp` and, if the current mesh has one, `expert`: P(("fsdp", "expert"), "tensor",
    None).

    Args:
        letters: its dimensions.
        shape: its sizes. Where the current mesh has more devices along `tensor` than there are key-value heads, every
            device holds all of those heads (see `kv_copies`); without a shape they are taken to be spread.

    Raises:
        ValueError: a letter has no layout, or two dims would land on one mesh axis.
    """
    return _spec(letters, _PARAM | {"D": width_axes(letters)} | _whole_heads(letters, shape))


def width_axes(letters: str) -> str | tuple[str, ...]:
    """The mesh axes over which the model width of a parameter of these dimensions is spread while it is stored."""
    spread = "E" not in letters and get_abstract_mesh().shape.get("expert", 1) > 1
    return ("fsdp", "expert") if spread else "fsdp"


def gathered_spec(letters: str, shape: Sequence[int] | None = None) -> PartitionSpec:
    """The layout of a parameter while it is used: as stored, with its model width gathered."""
    return _spec(letters, _PARAM | {"D": None} | _whole_heads(letters, shape))


def kv_copies(kv_heads: int) -> int:
    """How often each key-value head is repeated in use, so that the current mesh's `tensor` axis can spread them.

    1, or tensor / kv_heads where that axis is a multiple longer: query heads are spread over it, and each needs its
    key-value head beside it.
    """
    tensor = get_abstract_mesh().shape.get("tensor", 1)
    return tensor // kv_heads if tensor > kv_heads and tensor % kv_heads == 0 else 1


def _whole_heads(letters: str, shape: Sequence[int] | None) -> dict[str, None]:
    if shape is None or "K" not in letters or kv_copies(shape[letters.index("K")]) == 1:
        return {}
    return {"K": None}


def residual_spec(*, spread: bool) -> PartitionSpec:
    """The layout of the residual stream "BTD" between blocks: an activation's or, if `spread`, T over `tensor` too."""
    return PartitionSpec(BATCH_AXES, ("context", "tensor"), None) if spread else act_spec("BTD")


def act_spec(letters: str, *, decoding: bool = False) -> PartitionSpec:
    """The layout of an activation: "BTNH" -> P(("data", "fsdp", "expert"), "context", "tensor", None).

    While decoding T is a single position, which cannot be spread over `context`.

    Raises:
        ValueError: a letter has no layout, or two dims would land on one mesh axis.
    """
    return _spec(letters, _ACT | {"T": None} if decoding else _ACT)


def _spec(letters: str, table: Mapping[str, str | tuple[str, ...] | None]) -> PartitionSpec:
    entries = []
    used: set[str] = set()
    for letter in letters:
        if letter not in table:
            raise ValueError(f"dimension {letter!r} of {letters!r} has no layout; known: {''.join(sorted(table))}")
        entry = table[letter]
        axes = (entry,) if isinstance(entry, str) else entry or ()
        if clash := used.intersection(axes):
            raise ValueError(f"two dimensions of {letters!r} land on mesh axis {min(clash)!r}")
        used.update(axes)
        entries.append(entry)
    return PartitionSpec(*entries)
