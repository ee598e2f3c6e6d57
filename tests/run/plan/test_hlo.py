"""What the text of a compiled program says: written-out cases, in the forms of XLA's CPU and TPU compilers."""

import pytest

from gptjax.run.plan import hlo
from gptjax.run.plan.memory_traffic import memory_traffic

# An all-gather in a loop of 5 - 1 = 4 turns; the TPU compiler shows one asynchronous collective (chain 7) in two
# fusions, a reduce-scatter as a fusion around an all-reduce, and buffers in on-chip memory as S(1).
TEXT = """\
HloModule jit_step, is_scheduled=true

%start.1 (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[8,8]{1,0} all-gather(%p), replica_groups=[4,2]<=[8], frontend_attributes={chain_id="7"}
}

%done.1 (p: bf16[4,8]) -> bf16[8,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.8 = bf16[8,8]{1,0} all-gather(%p), replica_groups=[4,2]<=[8], frontend_attributes={chain_id="7"}
}

%all-reduce-scatter.3 (input: f32[8,4]) -> f32[2,4] {
  %input = f32[8,4]{1,0} parameter(0)
  %all-reduce.1 = f32[8,4]{1,0} all-reduce(%input), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  ROOT %slice.1 = f32[2,4]{1,0} slice(%all-reduce.1), slice={[0:2], [0:4]}
}

%cond (arg.1: (s32[], f32[4,4])) -> pred[] {
  %arg.1 = (s32[], f32[4,4]) parameter(0)
  %limit = s32[] constant(5), metadata={op_name="while/cond/lt"}
  %i = s32[] get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (arg.2: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %arg.2 = (s32[], f32[4,4]) parameter(0)
  %j = s32[] get-tuple-element(%arg.2), index=0
  %x.2 = f32[4,4]{1,0:T(8,128)S(1)} get-tuple-element(%arg.2), index=1
  %all-gather.2 = f32[4,16]{1,0} all-gather(%x.2), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}
  ROOT %out = (s32[], f32[4,4]) tuple(%j, %x.2)
}

ENTRY %main (a: bf16[4,8], b: f32[8,4], c: f32[4,4]) -> f32[4,4] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[8,4]{1,0} parameter(1)
  %c = f32[4,4]{1,0} parameter(2)
  %one = s32[] constant(1)
  %f.1 = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%start.1
  %f.2 = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%done.1
  %f.3 = f32[2,4]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
  %init = (s32[], f32[4,4]) tuple(%one, %c)
  %loop = (s32[], f32[4,4]) while(%init), condition=%cond, body=%body
  %copy.1 = f32[4,4]{1,0} copy(%c)
  ROOT %result = f32[4,4]{1,0} get-tuple-element(%loop), index=1
}
"""


# libtpu's devices of two slices with four chips each; the hosts do what is between slices
IDS = [100000, 100001, 100002, 100003, 200000, 200001, 200002, 200003]


def between_slices(name, operand, kind, target):
    given = f'_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"'
    return (
        f"  %send.{name} = (f32[4,8]{{1,0}}, u32[], token[]) send(%{operand}, %none), frontend_attributes={{{given}}}\n"
        f"  %recv.{name} = (f32[4,8]{{1,0}}, u32[], token[]) recv(%none), frontend_attributes={{{given}}}\n"
    )


SLICES = (
    "HloModule jit_step, is_scheduled=true\n\n"
    "ENTRY %main (a: f32[4,8], b: bf16[4,8]) -> f32[4,8] {\n"
    "  %a = f32[4,8]{1,0} parameter(0)\n  %b = bf16[4,8]{1,0} parameter(1)\n  %none = token[] after-all()\n"
    + between_slices("1", "a", "ALL_REDUCE", '"{1,2}x{0:3}"')
    + between_slices("2", "b", "ALL_GATHER", '"{1,2}x{0:3}"')
    + between_slices("3", "b", "ALL_TO_ALL", "{{100001,200001},{100002,200002}}")
    + between_slices("4", "b", "ONE_TO_ONE", "{{100003->200003},{200003->100003}}")
    + "  ROOT %out = f32[4,8]{1,0} get-tuple-element(%recv.1), index=0\n}\n"
)


def test_what_is_sent_between_slices_counts_with_its_devices():
    found = {one.kind: one for one in hlo.collectives(hlo.parsed(SLICES), IDS)}
    assert {kind: one.members for kind, one in found.items()} == {
        "all-reduce": (0, 4),
        "all-gather": (0, 4),
        "all-to-all": (1, 5),
        "collective-permute": (3, 7),
    }
    assert (found["all-reduce"].payload, found["all-reduce"].traffic) == (128, 128)  # two halves, out and back
    assert (found["all-gather"].payload, found["all-gather"].traffic) == (128, 64)
    assert found["all-to-all"].traffic == 32
    assert found["collective-permute"].traffic == 64


def test_collectives_count_once_for_each_run():
    found = {(one.kind, one.members): (one.payload, one.times) for one in hlo.collectives(hlo.parsed(TEXT))}
    assert found == {
        ("all-gather", (0, 1)): (2 * 4 * 8 * 2, 1),  # 2 members, bf16[4,8] each
        ("reduce-scatter", (0, 2, 4, 6)): (8 * 4 * 4, 1),
        ("all-gather", (0, 1, 2, 3)): (4 * 4 * 4 * 4, 4),  # b is the inner axis; turns 1, 2, 3, 4
    }


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 3 * 75.0), ("reduce-scatter", 3 * 75.0), ("all-reduce", 3 * 150.0), ("all-to-all", 3 * 75.0)],
)
def test_a_ring_of_four_sends_three_quarters_of_the_array_in_each_phase(kind, sent):
    assert hlo.Collective(kind, (0, 1, 2, 3), 100, 3).traffic == sent


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("replica_groups=mesh['x'=2,'y'=2,'z'=2] {'x','z'}", (0, 1, 4, 5)),
        ("replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}", (0, 4)),
        ("replica_groups=mesh['x'=8] {'x':(2)4}", (0, 1, 2, 3)),
        ("source_target_pairs={{0,0},{3,1}}", (3, 1)),
    ],
)
def test_groups_are_read_in_every_form(groups, members):
    text = TEXT.replace("replica_groups=mesh['a'=2,'b'=4] {'b'}", groups)
    assert any(one.members == members for one in hlo.collectives(hlo.parsed(text)))


def test_only_main_memory_counts_as_traffic():
    # fusions: read a (64 B) and write 128 B, twice; read b (128 B) and write 32 B; the copy reads and writes 64 B;
    # four turns write the gathered 256 B, what they gather lies on the chip.
    assert memory_traffic(hlo.parsed(TEXT)) == 2 * (64 + 128) + (128 + 32) + 2 * 64 + 4 * 256


def test_a_fusion_reads_the_slices_that_it_takes():
    text = """\
%fused (p0: f32[10,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[10,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %s = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,8}
}

ENTRY %main (x: f32[10,8], i: s32[]) -> f32[1,8] {
  %x = f32[10,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
}
"""
    assert memory_traffic(hlo.parsed(text)) == 32 + 4 + 32


def test_a_fusion_inside_a_fusion_reads_the_slice_that_it_takes():
    # as decoding takes a layer out of the stack of all: the product reads one of ten layers, and the table three rows
    text = """\
%layer (p: f32[10,8,4]) -> f32[8,4] {
  %p = f32[10,8,4]{2,1,0} parameter(0)
  %b = f32[80,4]{1,0} bitcast(%p)
  %s = f32[8,4]{1,0} slice(%b), slice={[16:24], [0:4]}
  ROOT %c = f32[8,4]{1,0} copy(%s)
}

%fused (x: f32[2,8], stack: f32[10,8,4]) -> f32[2,4] {
  %x = f32[2,8]{1,0} parameter(0)
  %stack = f32[10,8,4]{2,1,0} parameter(1)
  %w = f32[8,4]{1,0} fusion(%stack), kind=kLoop, calls=%layer
  ROOT %y = f32[2,4]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[2,8], stack: f32[10,8,4], table: f32[100,8], rows: s32[3]) -> f32[3,8] {
  %x = f32[2,8]{1,0} parameter(0)
  %stack = f32[10,8,4]{2,1,0} parameter(1)
  %table = f32[100,8]{1,0} parameter(2)
  %rows = s32[3]{0} parameter(3)
  %f = f32[2,4]{1,0} fusion(%x, %stack), kind=kOutput, calls=%fused
  ROOT %g = f32[3,8]{1,0} gather(%table, %rows), offset_dims={1}, slice_sizes={1,8}
}
"""
    product, gather = 64 + 8 * 4 * 4 + 32, 2 * 3 * 8 * 4
    assert memory_traffic(hlo.parsed(text)) == product + gather
