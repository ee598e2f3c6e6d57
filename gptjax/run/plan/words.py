"""A plan as text and as JSON."""

import dataclasses
from typing import Any

from gptjax.run.plan.compile import ProgramPlan
from gptjax.run.plan.search import Choice


def described(programs: list[ProgramPlan], devices: int, kind: str) -> str:
    """All that was found out, one block for each program."""
    return "\n\n".join(_described(program, devices, kind) for program in programs)


def _described(program: ProgramPlan, devices: int, kind: str) -> str:
    memory = program.memory
    compiled = f"compiled in {program.compile_seconds:.0f} s"
    lines = [f"{program.name}: {program.tokens:,} tokens on {devices} x {kind} ({compiled})"]
    verdict = ""
    if memory.capacity is not None:
        verdict = f", {_size(memory.missing)} too many" if memory.missing else ", fits"
        verdict = f" of {_size(memory.capacity)}{verdict}"
    lines.append(f"  memory per device    {_size(memory.peak)}{verdict}")
    for name in ("parameters", "optimizer", "other_arguments", "temporaries"):
        lines.append(f"    {name.replace('_', ' '):18} {_size(getattr(memory, name))}")
    if memory.in_host:
        lines.append(f"  in the host's memory {_size(memory.in_host)} for each device")
    lines.append(f"  model FLOPs          {program.model_flops:.3e}")
    lines.append(f"  memory traffic       {_size(program.hbm_bytes)} per device")
    lines.append("  sent by each device")
    for row in program.traffic:
        where = f"over {row.axes} ({row.network}), {row.runs} runs"
        lines.append(f"    {row.kind:18} {_size(row.sent_bytes):>10}  {where}")
    return "\n".join(lines + _times(program, devices, kind))


def _times(program: ProgramPlan, devices: int, kind: str) -> list[str]:
    if program.roofline is None:
        return [f"  time                 not predicted: the peak rates of {kind} are not known"]
    times, figures = program.roofline, speed(program, devices)
    best = f"{times.fastest:.3f} if everything overlaps ({times.binds} binds)"
    parts = ", ".join(f"{name} {getattr(times, name):.3f}" for name in ("compute", "hbm", "ici", "dcn"))
    rates = [f"{figures[f'tokens_per_second_{name}']:,.0f}" for name in ("best", "worst")]
    return [
        f"  seconds              {best}, {times.slowest:.3f} if nothing does",
        f"    alone              {parts}",
        f"  tokens per second    {' to '.join(rates)}",
        f"  MFU                  {figures['mfu_best']:.0%} to {figures['mfu_worst']:.0%}",
    ]


def speed(program: ProgramPlan, devices: int) -> dict[str, float]:
    """Tokens per second and model FLOPs utilisation, best (all overlaps) and worst (nothing does); {} if unknown."""
    times, used = program.roofline, program.peak_flops
    if times is None or used is None:
        return {}
    found = {}
    for name, seconds in (("best", times.fastest), ("worst", times.slowest)):
        found[f"tokens_per_second_{name}"] = program.tokens / seconds
        found[f"mfu_{name}"] = program.model_flops / seconds / (devices * used)
    return found


def as_dict(programs: list[ProgramPlan], devices: int, kind: str) -> dict[str, Any]:
    """For --json: every figure, in bytes and seconds."""
    found = {}
    for program in programs:
        figures = dataclasses.asdict(program)
        figures["memory"]["missing"] = program.memory.missing
        if program.roofline is not None:
            times = program.roofline
            figures["roofline"] |= {"fastest": times.fastest, "slowest": times.slowest, "binds": times.binds}
        found[program.name] = figures | speed(program, devices)
    return {"devices": devices, "device_kind": kind, "programs": found}


def ranking(choices: list[Choice]) -> str:
    """One line for each layout that was tried."""
    lines = ["fits  peak per device  tokens/s at best  options"]
    for choice in choices:
        rate = choice.tokens_per_second
        lines.append(
            f"{'no ' if choice.missing else 'yes':4}  {_size(choice.peak):>15}  "
            f"{'-' if rate is None else format(rate, ',.0f'):>16}  {choice.options}"
        )
    return "\n".join(lines)


def _size(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size:,.0f} B"
