"""What a compiled program reads from and writes to main memory, from XLA's optimized text."""

from gptjax.run.plan.hlo import Instruction, Program, called, runs, shape_bytes

_IDLE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_SLICES = {"slice", "dynamic-slice", "gather"}  # of their first operand they read what they give


def memory_traffic(program: Program) -> int:
    """Bytes that the instructions of one call read from and write to main memory; on-chip buffers do not count."""
    total = 0
    for name, times in runs(program, fusions=False).items():
        computation = program.computations[name]
        total += times * sum(_traffic(program, computation, instruction) for instruction in computation.values())
    return total


def _traffic(program: Program, computation: dict[str, Instruction], instruction: Instruction) -> int:
    if instruction.opcode in _IDLE or instruction.opcode.endswith("-done"):
        return 0
    shapes = [computation[operand].shape if operand in computation else "" for operand in instruction.operands]
    read, written = (sum(shape_bytes(s, main_memory=True) for s in group) for group in (shapes, [instruction.shape]))
    if instruction.opcode in _SLICES:
        return 2 * written
    if instruction.opcode == "dynamic-update-slice":
        return 2 * shape_bytes(shapes[1], main_memory=True)
    if instruction.opcode == "copy-start":
        return shape_bytes(instruction.shape.split("},")[0] + "}", main_memory=True) + read
    if instruction.opcode != "fusion":
        return read + written
    return _fusion_traffic(program, program.computations[called(instruction.rest, "calls")[0]], shapes, written)


def _fusion_traffic(program: Program, fused: dict[str, Instruction], shapes: list[str], written: int) -> int:
    """A fusion reads only the slices that it takes of an operand, and writes only what it updates in place."""
    total = 0
    for parameter in (x for x in fused.values() if x.opcode == "parameter"):
        number = int(parameter.operands[0])
        whole = shape_bytes(shapes[number], main_memory=True) if number < len(shapes) else 0
        users = _users(fused, parameter.name)
        if whole and users and all(_updates(x, parameter.name) for x in users):
            whole, update = 0, sum(shape_bytes(fused[x.operands[1]].shape) for x in users)
            written = min(written, update)
        total += min(whole, _taken(program, fused, parameter.name, whole))
    return total + written


def _taken(program: Program, fused: dict[str, Instruction], name: str, whole: int) -> int:
    """Bytes that a fusion reads of one of its values: all of it, unless everything that uses it takes slices.

    Fusions inside fusions are looked into.
    """
    total = 0
    for user in _users(fused, name):
        if user.opcode in _SLICES and user.operands[0] == name:
            total += shape_bytes(user.shape)
        elif user.opcode == "bitcast":
            total += _taken(program, fused, user.name, whole)
        elif user.opcode == "fusion":
            inner = program.computations[called(user.rest, "calls")[0]]
            number = str(user.operands.index(name))
            given = next(x for x in inner.values() if x.opcode == "parameter" and x.operands[0] == number)
            total += _taken(program, inner, given.name, whole)
        else:
            return whole
    return min(total, whole)


def _users(computation: dict[str, Instruction], name: str) -> list[Instruction]:
    return [x for x in computation.values() if name in x.operands]


def _updates(user: Instruction, name: str) -> bool:
    return user.opcode == "dynamic-update-slice" and user.operands[0] == name
