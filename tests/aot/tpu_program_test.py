"""What is read from a TPU's program of its main memory, against the same counted by hand."""

from jaxface.aot import tpu_program

# Shortened to what is read; the way of writing is that of libtpu 0.0.42.
_PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_add (q.0: bf16[3,100], q.1: bf16[3,100]) -> bf16[3,100] {
  %q.0 = bf16[3,100]{1,0:T(4,128)(2,1)} parameter(0)
  %q.1 = bf16[3,100]{1,0:T(4,128)(2,1)S(1)} parameter(1)
  ROOT %add.1 = bf16[3,100]{1,0:T(4,128)(2,1)} add(%q.0, %q.1)
}

%fused_slice (r.0: f32[64,128]) -> f32[8,128] {
  %r.0 = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %slice.1 = f32[8,128]{1,0:T(8,128)S(1)} slice(%r.0), slice={[0:8], [0:128]}
}

%async_collective_fusion.1 (s.0: bf16[512,128], s.1: f32[8,128]) -> (f32[8,128], bf16[512,128]) {
  %s.0 = bf16[512,128]{1,0:T(8,128)(2,1)} parameter(0)
  %s.1 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %all-gather.1 = bf16[512,128]{1,0:T(8,128)(2,1)} all-gather(%s.0), channel_id=1, dimensions={0}
  %work = f32[8,128]{1,0:T(8,128)} negate(%s.1)
  ROOT %tuple.1 = (f32[8,128]{1,0:T(8,128)}, bf16[512,128]{1,0:T(8,128)(2,1)}) tuple(%work, %all-gather.1)
}

ENTRY %main.1 (a: bf16[3,100], b: f32[64,128], g: bf16[512,128]) -> f32[8,128] {
  %a = bf16[3,100]{1,0:T(4,128)(2,1)} parameter(0)
  %b = f32[64,128]{1,0:T(8,128)} parameter(1)
  %g = bf16[512,128]{1,0:T(8,128)(2,1)} parameter(2)
  %copy-start = (bf16[3,100]{1,0:T(4,128)(2,1)S(1)}, bf16[3,100]{1,0:T(4,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[3,100]{1,0:T(4,128)(2,1)S(1)} copy-done(%copy-start)
  %sum = bf16[3,100]{1,0:T(4,128)(2,1)} fusion(%a, %copy-done), kind=kLoop, calls=%fused_add
  %part = f32[8,128]{1,0:T(8,128)} fusion(%b), kind=kLoop, calls=%fused_slice
  %slice-start = ((f32[64,128]{1,0:T(8,128)}), f32[16,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%b)
  %beside = (f32[8,128]{1,0:T(8,128)}, bf16[512,128]{1,0:T(8,128)(2,1)}) fusion(%g, %part), kind=kOutput, \
output_to_operand_aliasing={{1}: (0, {})}, calls=%async_collective_fusion.1
}
""".replace('\\\n', '')


def test_what_a_tpus_program_moves_to_and_from_its_main_memory():
  # Three rows take four, a hundred lanes 128.
  small = 4 * 128 * 2
  line = 128 * 4
  # Fetched onto the chip, read there; of the others one is sliced; the gathered array is only handed through.
  wanted = small + (small + small) + (8 * line + 8 * line) + 16 * line + (8 * line + 8 * line)
  assert tpu_program.bytes_moved(_PROGRAM) == wanted


def test_arrays_on_the_chip_are_not_in_the_main_memory():
  assert (
    tpu_program.main_memory('(f32[9,130]{1,0:T(8,128)}, f32[9,130]{1,0:T(8,128)S(1)}, s32[]{:S(2)})')
    == 16 * 256 * 4 + 4
  )
