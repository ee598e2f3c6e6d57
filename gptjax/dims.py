"""The alphabet: one letter per kind of array dimension, the same in names, einsum equations, shapes and layouts.

B batch, T position, S attended position, D model width, N query head, K key-value head, H head width, F hidden width,
V vocabulary, L layer (stacked), E expert, G query heads per key-value head, A LoRA rank, P prompt position,
R response position, C candidate (ranked response), 1 a dimension of size one.
"""

from collections.abc import Mapping

from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "expert", "context", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")

_PARAM: dict[str, str | tuple[str, ...] | None] = {
    "D": "fsdp",
    "N": "tensor",
    "K": "tensor",
    "F": "tensor",
    "V": "tensor",
    "E": "expert",
    **dict.fromkeys("HLTGA1"),
}
_ACT: dict[str, str | tuple[str, ...] | None] = {
    "B": BATCH_AXES,
    "T": "context",
    "N": "tensor",
    "K": "tensor",
    "F": "tensor",
    "V": "tensor",
    **dict.fromkeys("SDHLGAPRC1"),
}


def shape(letters: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The array shape that `letters` spell: shape("DNH", {"D": 8, "N": 2, "H": 4}) == (8, 2, 4)."""
    return tuple(1 if letter == "1" else sizes[letter] for letter in letters)


def param_spec(letters: str) -> PartitionSpec:
    """The layout of a stored parameter: "DNH" -> P("fsdp", "tensor", None).

    Raises:
        ValueError: a letter has no layout, or two dims would land on one mesh axis.
    """
    return _spec(letters, _PARAM)


def gathered_spec(letters: str) -> PartitionSpec:
    """The layout of a parameter while it is used: as stored, with the `fsdp` axis gathered."""
    return _spec(letters, _PARAM | {"D": None})


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
