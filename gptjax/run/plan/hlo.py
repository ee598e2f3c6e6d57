"""XLA's optimized text of a compiled program: its instructions, how often they run, and its collectives."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")
_BETWEEN_SLICES = {
    "ALL_GATHER": "all-gather",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_REDUCE": "all-reduce",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_BITS = {"pred": 8, "token": 0, "opaque": 0}


class Collective(NamedTuple):
    """One collective of the program as it runs.

    kind: such as "all-gather".  members: partition ids of the first group.  payload: bytes of the whole array on each
    device: what an all-gather makes, what the others start from.  times: runs per call of the program.
    """

    kind: str
    members: tuple[int, ...]
    payload: int
    times: int

    @property
    def traffic(self) -> float:
        """Bytes that a device sends, in a ring; an all-reduce is a reduce-scatter and an all-gather."""
        n = len(self.members)
        if self.kind == "collective-permute":
            return float(self.payload * self.times)
        return (2 if self.kind == "all-reduce" else 1) * self.payload * self.times * (n - 1) / n


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; `shape` is the text of its result's type, `rest` all after the operands."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


@dataclass
class Program:
    """A module: its computations by name, and which one it begins with."""

    computations: dict[str, dict[str, Instruction]] = field(default_factory=dict)
    entry: str = ""


def parsed(text: str) -> Program:
    """The module that `compiled.as_text()` prints."""
    program, current = Program(), None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY").split("(")[0].strip().lstrip("%")
            current = program.computations.setdefault(name, {})
            program.entry = name if line.startswith("ENTRY") else program.entry
        elif current is not None and line.startswith("  ") and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return program


def collectives(program: Program, ids: Sequence[int] = ()) -> list[Collective]:
    """Every collective that runs, with the trip counts of the loops around it.

    The TPU compiler spreads an asynchronous collective over several fusions that carry one chain id; it counts once.
    Between slices it has no collectives: the hosts are sent what to reduce or gather, with the devices' own numbers.

    Args:
        program: as `parsed` gave it.
        ids: numbers of the devices, in the order of the partitions; needed with several slices.
    """
    found, chains = [], set()
    for name, times in runs(program).items():
        computation = program.computations[name]
        for instruction in computation.values():
            kind = _kind(instruction)
            if kind is None:
                continue
            if chain := re.search(r'chain_id="(\d+)"', instruction.rest):
                if chain[1] in chains:
                    continue
                chains.add(chain[1])
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            members = _members(instruction.rest, ids)
            payload = sum(shape_bytes(computation[operand].shape) for operand in instruction.operands)
            payload *= len(members) if kind == "all-gather" else 1
            if len(members) > 1:
                found.append(Collective(kind, members, payload, times))
    return found


def _kind(instruction: Instruction) -> str | None:
    """Which collective an instruction is, or begins; None: it is none."""
    if instruction.opcode == "send":
        between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
        return None if between is None else _BETWEEN_SLICES[between[1]]
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _KINDS else None


def shape_bytes(shape: str, *, main_memory: bool = False) -> int:
    """Bytes of a type such as "(f32[4,8]{1,0}, bf16[2]{0:S(1)})".

    Args:
        shape: as printed.
        main_memory: leave out what lies in another memory space, S(1) and so on.
    """
    total = 0
    for dtype, dims, layout in re.findall(r"([a-z]+[0-9a-z]*)\[([\d,<=]*)\](\{[^}]*\})?", shape):
        if main_memory and re.search(r"S\([1-9]", layout):
            continue
        width = re.search(r"\d+", dtype)
        bits = _BITS[dtype] if dtype in _BITS or width is None else int(width[0])
        total += math.prod(int(d.strip("<=")) for d in dims.split(",") if d) * bits // 8
    return total


def trip_count(program: Program, loop: Instruction, computation: dict[str, Instruction]) -> int:
    """Runs of a while loop's body: as XLA noted it, else from the constant that its counter is compared with.

    A loop that may stop early is counted to its bound; one without any bound counts once.
    """
    if known := re.search(r'known_trip_count[\\":{ n]+(\d+)', loop.rest):
        return int(known[1])
    condition = program.computations[called(loop.rest, "condition")[0]]
    for compare in condition.values():
        limits = [condition.get(operand) for operand in compare.operands] if compare.opcode == "compare" else []
        limit = next((x for x in limits if x is not None and x.opcode == "constant"), None)
        counter = next((x for x in limits if x is not None and x.opcode == "get-tuple-element"), None)
        if limit is not None and "direction=LT" in compare.rest and (value := _constant(limit)) is not None:
            return max(1, value - _start(counter, loop, computation))
    return 1


def _start(counter: Instruction | None, loop: Instruction, computation: dict[str, Instruction]) -> int:
    """What the counter begins with, 0 if that cannot be seen."""
    given = computation.get(loop.operands[0])
    index = re.search(r"index=(\d+)", counter.rest) if counter is not None else None
    if given is None or given.opcode != "tuple" or index is None:
        return 0
    first = computation.get(given.operands[int(index[1])])
    while first is not None and first.opcode in ("copy", "bitcast"):
        first = computation.get(first.operands[0])
    return (_constant(first) or 0) if first is not None and first.opcode == "constant" else 0


def _constant(instruction: Instruction) -> int | None:
    value = instruction.operands[0] if instruction.operands else ""
    return int(value) if re.fullmatch(r"-?\d+", value) else None


def runs(program: Program, *, fusions: bool = True) -> dict[str, int]:
    """How often each computation runs, by name; both branches of a conditional count.

    fusions: count the computations of fusions too.
    """
    runs: dict[str, int] = defaultdict(int)

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for instruction in program.computations[name].values():
            inside = times
            if instruction.opcode == "while":
                inside *= trip_count(program, instruction, program.computations[name])
            for other in _callees(instruction, fusions):
                visit(other, inside)

    visit(program.entry, 1)
    return dict(runs)


def _callees(instruction: Instruction, fusions: bool) -> Iterator[str]:
    if instruction.opcode == "while":
        yield from called(instruction.rest, "body")
    elif instruction.opcode == "conditional":
        yield from called(instruction.rest, "branch_computations")
        yield from called(instruction.rest, "true_computation")
        yield from called(instruction.rest, "false_computation")
    elif instruction.opcode == "call" or instruction.opcode.startswith("async-start"):
        yield from called(instruction.rest, "to_apply") or called(instruction.rest, "calls")
    elif instruction.opcode == "fusion" and fusions:
        yield from called(instruction.rest, "calls")


def called(rest: str, what: str) -> list[str]:
    """Computations that an instruction names as its `body`, `calls` and the like, in the text after its operands."""
    found = re.search(rf"\b{what}=(\{{[^}}]*\}}|%?[\w.-]+)", rest)
    return re.findall(r"[\w.-]+", found[1]) if found else []


def _members(rest: str, ids: Sequence[int]) -> tuple[int, ...]:
    """Partitions of the first group of devices, in any of the forms in which XLA prints groups."""
    if "_xla_megascale_target" in rest:
        return tuple(ids.index(number) for number in _slice_members(rest))
    if pairs := re.search(r"source_target_pairs=\{+([\d,{} ]*)\}", rest):
        numbers = [int(x) for x in re.findall(r"\d+", pairs[1])]
        return next(((a, b) for a, b in zip(numbers[::2], numbers[1::2], strict=True) if a != b), (0,))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? ?\{([^}]*)\}", rest):
        return _mesh_members(*mesh.groups())
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]*\](?:T\([\d,]*\))?)", rest):
        return tuple(_iota(iota[3]).reshape(int(iota[1]), int(iota[2]))[0].tolist())
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    return tuple(int(x) for x in listed[1].split(",")) if listed else (0,)


def _slice_members(rest: str) -> tuple[int, ...]:
    """The first group of device numbers of a transfer between slices: "{1,2}x{0:7}", or lists of devices or of pairs.

    libtpu numbers device 7 of the second slice 200007.
    """
    if product := re.search(r'_xla_megascale_target="\{([\d,]+)\}x\{(\d+)', rest):
        return tuple(int(number) * 100_000 + int(product[2]) for number in product[1].split(","))
    listed = re.search(r"_xla_megascale_target=\{\{([\d,>-]+)\}", rest)
    assert listed is not None, rest
    return tuple(int(number) for number in re.findall(r"\d+", listed[1]))


def _mesh_members(axes: str, device_ids: str | None, chosen: str) -> tuple[int, ...]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values())) if device_ids is None else _iota(device_ids)
    grid, names, wanted = ids.reshape(tuple(sizes.values())), list(sizes), []
    for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen):
        index = names.index(name)
        if size:  # a part of an axis
            parts = (int(before), int(size), grid.shape[index] // int(before) // int(size))
            grid = grid.reshape(*grid.shape[:index], *parts, *grid.shape[index + 1 :])
            names[index : index + 1] = [f"{name}<", f"{name}:({before}){size}", name]
            index += 1
        wanted.append(index)
    rest = [index for index in range(grid.ndim) if index not in wanted]
    size = math.prod(grid.shape[index] for index in wanted)
    return tuple(grid.transpose(*rest, *wanted).reshape(-1, size)[0].tolist())


def _iota(text: str) -> np.ndarray:
    """ "[4,2]T(1,0)" -> the numbers 0..7 in that order."""
    found = re.match(r"\[([\d,]*)\](?:T\(([\d,]*)\))?", text)
    assert found is not None, text
    sizes, order = found.groups()
    shape = [int(x) for x in sizes.split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers.transpose([int(x) for x in order.split(",")]) if order else numbers).reshape(-1)


def _instruction(line: str) -> Instruction:
    name, _, right = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ") - 1
    shape, right = right[: end + 1], right[end + 2 :]
    opcode, _, _ = right.partition("(")
    close = _closing(right, len(opcode))
    inside = re.sub(r"/\*.*?\*/", "", right[len(opcode) + 1 : close])
    operands = tuple(re.findall(r"%([\w.-]+)", inside)) or tuple(x.strip() for x in inside.split(",") if x.strip())
    return Instruction(name.lstrip("%"), shape, opcode.strip(), operands, right[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the first one at or after `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0 and text[index] == ")":
            return index
    return len(text) - 1
