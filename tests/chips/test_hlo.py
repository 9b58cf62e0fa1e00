"""Reading compiled programs: hand-written texts, and one that JAX has just compiled."""

import jax
import jax.numpy as jnp
import pytest

from frcnn_jax.chips import hlo
from frcnn_jax.chips.hlo import Buffer

TEXT = r"""HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }, entry_computation_layout={(f32[2]{0})->f32[2]{0}}

FileNames
1 "f.py"

FunctionNames
1 "<module>"
2 "outer"
3 "Class.inner"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=2 end_line=2 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=3 end_line=3 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%body (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p = (s32[]{:T(128)}, f32[2]{0:T(128)S(1)}) parameter(0)
  ROOT %t = (s32[]{:T(128)}, /*index=1*/f32[2]{0:T(128)S(1)}) tuple(%a, %b), metadata={op_name="jit(f)/x[{}]" stack_frame_id=3}
}

ENTRY %main.1 (x: bf16[3,5]) -> f32[2] {
  %x = bf16[3,5]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %c = s32[]{:T(128)} constant(7)
  ROOT %w.1 = (s32[]{:T(128)}, f32[2]{0}) while(%c), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"16"},"window_config":{"estimated_cycles":"1824"}}
}
"""  # noqa: E501


def test_a_module_has_its_computations_instructions_aliases_and_stacks():
    module = hlo.parse(TEXT)
    assert list(module.computations) == ["body", "main.1"]
    assert module.entry == "main.1" and module.aliases == 2
    loop = module.computations["main.1"].root
    assert (loop.name, loop.opcode, loop.operands) == ("w.1", "while", ("c",))
    assert loop.trips == 16 and loop.cycles == 1824
    assert loop.called == ["cond", "body"]
    state = module.computations["body"].root
    assert state.operands == ("a", "b") and state.op_name == "jit(f)/x[{}]"
    assert module.functions(state) == ("Class.inner", "outer", "<module>")
    assert module.functions(loop) == ()
    assert state.results[1] == Buffer("f32", (2,), (0,), (128,), 1)
    (x,) = module.computations["main.1"].instructions["x"].results
    assert x == Buffer("bf16", (3, 5), (1, 0), (8, 128), 0)


@pytest.mark.parametrize(
    ("buffer", "expected"),
    [
        (Buffer("f32", (3, 5)), 60),
        (Buffer("bf16", (3, 5), (1, 0), (8, 128)), 8 * 128 * 2),
        # The first dimension is the minor one: 5 is padded to 8, 3 to 128.
        (Buffer("bf16", (3, 5), (0, 1), (8, 128)), 128 * 8 * 2),
        (Buffer("s32", (1025,), (0,), (1024,)), 2048 * 4),
        (Buffer("pred", (2, 9, 130), (2, 1, 0), (8, 128)), 2 * 16 * 256),
        (Buffer("f32", (), (), (128,)), 512),
        (Buffer("f8e4m3fn", (3,)), 3),
    ],
)
def test_bytes_of_a_buffer_with_the_padding_of_its_tiles(buffer, expected):
    assert buffer.bytes == expected


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="begins with ENTRY"):
        hlo.parse("func.func @main() {\n}\n")


def test_what_jax_compiles_is_read():
    def f(x, y):
        return jnp.sort(x) + y, x @ y

    x = jnp.zeros((8, 8))
    text = jax.jit(f, donate_argnums=1).lower(x, x).compile().as_text()
    module = hlo.parse(text)
    assert module.aliases == 1
    steps = module.computations[module.entry].instructions.values()
    names = {i.opcode for i in steps}
    assert {"parameter"} < names and "" not in names
    assert module.computations[module.entry].root.results[0].shape == (8, 8)
