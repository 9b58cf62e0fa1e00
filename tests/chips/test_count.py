"""Counts of hand-written programs, and of compiled ones beside XLA's own and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from frcnn_jax.chips import count, hlo

TEXT = r"""HloModule jit_f, is_scheduled=true

FunctionNames
1 "match"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}


%body (p: (s32[], f32[100])) -> (s32[], f32[100]) {
  %p = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[100]{0} get-tuple-element(%p), index=1
  %s = f32[100]{0} sort(%v), dimensions={0}, to_apply=%less
  ROOT %t = (s32[], f32[100]{0}) tuple(%i, %s)
}

%counted (p: (s32[], f32[100])) -> pred[] {
  %p = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%more (p: (s32[], f32[100])) -> pred[] {
  %p = (s32[], f32[100]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(3)
  %c = pred[] compare(%i, %n), direction=LT
  ROOT %d = pred[] negate(%c)
}

%rows (p0: f32[50,4], p1: s32[7,1]) -> f32[7,4] {
  %p0 = f32[50,4]{1,0} parameter(0)
  %p1 = s32[7,1]{1,0} parameter(1)
  ROOT %g = f32[7,4]{1,0} gather(%p0, %p1), offset_dims={1}
}

%writes (p0: f32[50,4], p1: f32[1,4], p2: s32[]) -> f32[50,4] {
  %p0 = f32[50,4]{1,0} parameter(0)
  %p1 = f32[1,4]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %u = f32[50,4]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

ENTRY %main (x: f32[100], t: f32[50,4], r: s32[7,1], u: f32[1,4]) -> f32[7,4] {
  %x = f32[100]{0} parameter(0)
  %t = f32[50,4]{1,0} parameter(1)
  %r = s32[7,1]{1,0} parameter(2)
  %u = f32[1,4]{1,0} parameter(3)
  %z = s32[] constant(0)
  %start = (s32[], f32[100]{0}) tuple(%z, %x)
  %known = (s32[], f32[100]{0}) while(%start), condition=%counted, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %open = (s32[], f32[100]{0}) while(%known), condition=%more, body=%body, metadata={op_name="jit(f)/while" stack_frame_id=1}
  %w = f32[50,4]{1,0} fusion(%t, %u, %z), kind=kLoop, calls=%writes
  %l = f32[50,4]{0,1} copy(%w), metadata={op_name="jit(f)/fpn/copy"}
  %sum = f32[50,4]{0,1} all-reduce(%l), replica_groups={}, to_apply=%add
  %far = f32[50,4]{0,1} custom-call(%sum), custom_call_target="xla_ffi_python_cpu_callback"
  %seven = s32[] constant(-4)
  %from = s32[] copy(%seven)
  %again = (s32[], f32[100]{0}) tuple(%from, %x)
  %unsaid = (s32[], f32[100]{0}) while(%again), condition=%counted, body=%body
  ROOT %g = f32[7,4]{1,0} fusion(%far, %r), kind=kLoop, calls=%rows, backend_config={"estimated_cycles":"50"}
}
"""  # noqa: E501


def test_everything_of_a_hand_written_program_is_counted():
    found = count.count(hlo.parse(TEXT))
    # Three times as it says, once, and from -4 to 3.
    assert found.sorts == [(1, 100)] * (3 + 1 + 7)
    assert found.counted_loops == 2
    assert found.loops == [count.Loop("matching", "match", 3)]
    assert found.gathers == 1 and found.scatters == 0 and found.host == 1
    assert found.collectives == {"all-reduce": (1, 800)}
    assert found.copies == (1, 800)
    assert found.cycles == {"FPN": 50}
    # Sorts read and write 400 bytes each, conditions compare two numbers and write a
    # truth (9 bytes), in one loop that is negated (2 bytes); a number is copied (8).
    # The update is read and written, its place is read:
    # 16 + 16 + 4. Copy, sum and call: 1,600 each. Rows: 7 x 16 read and written,
    # 7 x 4 of indices.
    sorts, updates = 11 * 800 + 11 * 9 + 2 + 8, 36
    assert found.bytes == sorts + updates + 3 * 1600 + 2 * 112 + 28
    assert found.bytes_by_part["FPN"] == 3 * 1600 + 2 * 112 + 28


def test_what_stays_on_the_chip_is_free_and_padding_is_not():
    text = """HloModule f
ENTRY %main (x: f32[3,5]) -> f32[3,5] {
  %x = f32[3,5]{1,0:T(8,128)} parameter(0)
  %y = f32[3,5]{1,0:T(8,128)S(1)} negate(%x)
  %z = f32[3,5]{1,0:T(8,128)S(1)} negate(%y)
  %c = (f32[3,5]{1,0:T(8,128)S(1)}, f32[3,5]{1,0:T(8,128)}, u32[]) copy-start(%x)
  %d = f32[3,5]{1,0:T(8,128)S(1)} copy-done(%c)
  %s = ((f32[3,5]{1,0:T(8,128)}), f32[1,5]{1,0:T(8,128)S(1)}, s32[]) slice-start(%x)
  ROOT %o = f32[3,5]{1,0:T(8,128)} copy(%z)
}"""
    found = count.count(hlo.parse(text))
    # Read by the first negation and by both starts, written by the last copy.
    assert found.bytes == 4 * 8 * 128 * 4 and found.copies == (0, 0)


def test_a_scatter_in_a_fusion_reads_and_writes_its_rows_alone():
    text = """HloModule f
%inner (a: f32[900,4], i: s32[5,1], u: f32[5,4]) -> f32[900,4] {
  %i = s32[5,1]{1,0} parameter(1)
  %u = f32[5,4]{1,0} parameter(2)
  %a = f32[900,4]{1,0} parameter(0)
  ROOT %s = f32[900,4]{1,0} scatter(%a, %i, %u), to_apply=%add
}
%outer (u: f32[5,4], a: f32[900,4], i: s32[5,1]) -> f32[900,4] {
  %u = f32[5,4]{1,0} parameter(0)
  %a = f32[900,4]{1,0} parameter(1)
  %i = s32[5,1]{1,0} parameter(2)
  ROOT %w = f32[900,4]{1,0} fusion(%a, %i, %u), kind=kCustom, calls=%inner
}
ENTRY %main (a: f32[900,4], i: s32[5,1], u: f32[5,4]) -> f32[900,4] {
  %a = f32[900,4]{1,0} parameter(0)
  %i = s32[5,1]{1,0} parameter(1)
  %u = f32[5,4]{1,0} parameter(2)
  ROOT %f = f32[900,4]{1,0} fusion(%u, %a, %i), kind=kCustom, calls=%outer
}"""
    found = count.count(hlo.parse(text))
    assert found.scatters == 1
    assert found.bytes == 80 + 20 + 2 * 80  # updates, indices, rows in and out


OPERATIONS = {  # how often it writes, or reads and writes, what it changes
    "dynamic-update-slice(%t, %g, %i, %i)": 1,
    "scatter(%t, %n, %g), to_apply=%add": 2,
    "fusion(%t, %g, %i), kind=kLoop, calls=%write": 1,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("table", ["", ":S(1)"])
@pytest.mark.parametrize("rows", ["", ":S(1)"])
def test_rows_are_counted_where_they_are_read_and_written(operation, table, rows):
    """Two rows of 20 bytes are gathered from a table and written into it.

    S(1) is on-chip memory, which is free.
    """
    text = f"""HloModule f
%write (t: f32[900,5], u: f32[2,5], i: s32[]) -> f32[900,5] {{
  %t = f32[900,5]{{1,0}} parameter(0)
  %u = f32[2,5]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  ROOT %w = f32[900,5]{{1,0}} dynamic-update-slice(%t, %u, %i, %i)
}}
ENTRY %main (t: f32[900,5], n: s32[2,1], i: s32[]) -> f32[900,5] {{
  %t = f32[900,5]{{1,0{table}}} parameter(0)
  %n = s32[2,1]{{1,0:S(1)}} parameter(1)
  %i = s32[]{{:S(1)}} parameter(2)
  %g = f32[2,5]{{1,0{rows}}} gather(%t, %n), offset_dims={{1}}
  ROOT %o = f32[900,5]{{1,0{table}}} {operation}
}}"""
    in_table = 0 if table else 40
    in_rows = 0 if rows else 40
    expected = in_table + in_rows + in_rows + OPERATIONS[operation] * in_table
    assert count.count(hlo.parse(text)).bytes == expected


def compiled(f, *shapes):
    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    done = jax.jit(f).lower(*args).compile()
    return count.count(hlo.parse(done.as_text())), done.cost_analysis()


def test_products_of_a_matrix_product():
    found, _ = compiled(lambda x, y: x @ y, (30, 40), (40, 50))
    assert found.products == 2 * 30 * 40 * 50 and found.types == {"f32": 1}


@pytest.mark.parametrize(
    "window",
    [
        dict(window_strides=(1, 1), padding="SAME"),
        dict(window_strides=(2, 3), padding=((3, 3), (0, 1))),
        dict(window_strides=(1, 2), padding=((2, 2), (2, 1)), lhs_dilation=(2, 3)),
        dict(window_strides=(1, 1), padding=((1, 4), (4, 1)), rhs_dilation=(2, 2)),
    ],
)
def test_products_of_a_convolution_leave_out_the_padding(window):
    layout = ("NHWC", "HWIO", "NHWC")

    def conv(x, k):
        return lax.conv_general_dilated(x, k, dimension_numbers=layout, **window)

    found, _ = compiled(conv, (2, 9, 11, 3), (3, 4, 3, 5))
    # Each output of the convolution of ones counts the multiply-adds that it has.
    reached = conv(jnp.ones((2, 9, 11, 3)), jnp.ones((3, 4, 3, 5)))
    assert found.products == 2 * float(reached.sum())


def test_taps_are_those_of_a_slow_loop(rng):
    for _ in range(200):
        length, size, stride, spread, dilation = rng.integers(1, 6, 5)
        pad, out = rng.integers(0, 5), rng.integers(1, 9)
        window = tuple(map(int, (stride, pad, spread, dilation)))
        line = np.zeros(200, bool)
        line[100 : 100 + (length - 1) * spread + 1 : spread] = True
        slow = sum(
            line[100 + o * stride + k * dilation - pad]
            for o in range(out)
            for k in range(size)
        )
        assert count._taps(int(length), int(out), window, int(size)) == slow


def test_parts_are_named_by_functions_then_by_modules():
    module = hlo.parse(TEXT)
    steps = {s.instruction.name: s for s in count.walk(module) if not s.fused}
    assert count.part_of(module, steps["open"], {}) == "matching"
    assert count.part_of(module, steps["l"], {}) == "FPN"
    assert count.part_of(module, steps["sum"], {("main", "l"): "FPN"}) == "FPN"
    assert count.part_of(module, steps["x"], {}) == "other"
