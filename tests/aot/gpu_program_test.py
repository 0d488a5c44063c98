"""What is read from a GPU's program, against the same counted by hand."""

from jaxface.aot import gpu_program, hlo

# Shortened to what is read; the way of writing is that of JAX 0.10.2's plugin for CUDA.
_PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused_dot (p.0: bf16[64,32], p.1: bf16[32,16]) -> bf16[64,16] {
  %p.0 = bf16[64,32]{1,0} parameter(0)
  %p.1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_add (q.0: f32[100], q.1: f32[100]) -> f32[100] {
  %q.0 = f32[100]{0} parameter(0)
  %q.1 = f32[100]{0} parameter(1)
  ROOT %add.1 = f32[100]{0} add(%q.0, %q.1)
}

%fused_slice (r.0: f32[1000], r.1: f32[1000]) -> f32[50] {
  %r.0 = f32[1000]{0} parameter(0)
  %r.1 = f32[1000]{0} parameter(1)
  %whole = f32[10,100]{1,0} bitcast(%r.0)
  %slice.1 = f32[1,50]{1,0} slice(%whole), slice={[3:4], [0:50]}
  %sum = f32[50]{0} reduce(%r.1, %slice.1), dimensions={0}
  ROOT %line = f32[50]{0} bitcast(%slice.1)
}

%fused_update (u.0: f32[1000], u.1: f32[20], u.2: s32[]) -> f32[1000] {
  %u.0 = f32[1000]{0} parameter(0)
  %u.1 = f32[20]{0} parameter(1)
  %u.2 = s32[] parameter(2)
  %old = f32[20]{0} dynamic-slice(%u.0, %u.2), dynamic_slice_sizes={20}
  %new = f32[20]{0} add(%old, %u.1)
  ROOT %update.1 = f32[1000]{0} dynamic-update-slice(%u.0, %new, %u.2)
}

%body (b: (s32[], f32[100])) -> (s32[], f32[100]) {
  %b = (s32[], f32[100]{0}) parameter(0)
  %b.1 = f32[100]{0} get-tuple-element(%b), index=1
  %twice = f32[100]{0} fusion(%b.1, %b.1), kind=kLoop, calls=%fused_add
}

ENTRY %main.1 (x: bf16[2,9,9,32], k: bf16[64,3,3,32], y: bf16[2,4,4,64]) -> bf16[2,4,4,64] {
  %x = bf16[2,9,9,32]{3,2,1,0} parameter(0)
  %k = bf16[64,3,3,32]{3,2,1,0} parameter(1)
  %y = bf16[2,4,4,64]{3,2,1,0} parameter(2)
  %conv = (bf16[2,4,4,64]{3,2,1,0}, u8[5000]{0}) custom-call(%x, %k), window={size=3x3 stride=2x2}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %to-k = (bf16[64,3,3,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3 stride=2x2}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %to-x = (bf16[2,9,9,32]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), window={size=3x3 stride=2x2}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %a = bf16[64,32]{1,0} bitcast(%k)
  %product = (bf16[64,64]{1,0}, s8[33554432]{0}) custom-call(%a, %a), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %fusion.1 = bf16[64,16]{1,0} fusion(%a, %c), kind=kCustom, calls=%fused_dot
  %attended = (bf16[2,4,16,8]{3,1,2,0}, f32[2,4,16]{2,1,0}, u8[9]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", \
backend_config={"intermediate_tensor_shape": {"dimensions": ["2", "4", "16", "16"]}}
  %sum-start = f32[100]{0} all-reduce-start(%d), channel_id=1, backend_config={"is_sync":true}
  %sum-done = f32[100]{0} all-reduce-done(%sum-start)
  %cut-start = ((f32[8]{0}, bf16[16]{0}), (f32[2]{0}, bf16[4]{0})) reduce-scatter-start(%e, %f), channel_id=2, \
backend_config={"is_sync":false}
  %part = f32[50]{0} fusion(%g, %h), kind=kLoop, calls=%fused_slice
  %g = f32[1000]{0} copy-done(%i)
  %h = f32[1000]{0} copy-done(%i)
  %alone = f32[20]{0} dynamic-slice(%g, %j), dynamic_slice_sizes={20}
  %alone.1 = f32[20]{0} bitcast(%alone)
  %added = f32[1000]{0} fusion(%g, %alone.1, %j), kind=kLoop, calls=%fused_update
  %put = f32[1000]{0} dynamic-update-slice(%added, %alone.1, %j)
  %loop = (s32[], f32[100]{0}) while(%t), condition=%none, body=%body
}
""".replace('\\\n', '')


def test_what_a_gpus_program_computes_and_moves():
  found = gpu_program.work(_PROGRAM)
  convolution = 2 * (2 * 4 * 4 * 64) * (3 * 3 * 32)
  attention = 2 * 2 * (2 * 4 * 16 * 16) * 8
  assert found.flops == 3 * convolution + 2 * 64 * 64 * 32 + 2 * 64 * 16 * 32 + attention
  x, k, y, a = 2 * 9 * 9 * 32 * 2, 64 * 3 * 3 * 32 * 2, 2 * 4 * 4 * 64 * 2, 64 * 32 * 2
  attended = 2 * 4 * 16 * 8 * 2 + 2 * 4 * 16 * 4
  # Of what is sliced or updated, only that part is read, and written.
  sliced = (200 + 4000 + 200) + (80 + 80) + (80 + 80 + 80) + (80 + 80)
  # Scratch memory is not counted; a fusion reads once what it is given twice.
  assert found.bytes_moved == 3 * (x + k + y) + (a + 64 * 64 * 2) + (a + 64 * 16 * 2) + attended + 2 * 400 + sliced


def test_exchanges_that_work_waits_for_are_told_from_those_beside_it():
  total, cut = hlo.collectives(_PROGRAM)
  assert (total.kind, total.bytes, total.overlapped) == ('all-reduce', 400, False)
  assert (cut.kind, cut.bytes, cut.overlapped) == ('reduce-scatter', 8 * 4 + 16 * 2, True)


_BRANCHES = """
%one (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %negated = f32[8]{0} negate(%p)
}

%other (q: f32[8]) -> f32[8] {
  ROOT %q = f32[8]{0} parameter(0)
}

ENTRY %main (which: s32[], x: f32[8], q: bf16[2,4,16,8]) -> f32[8] {
  %which = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  %q = bf16[2,4,16,8]{3,1,2,0} parameter(2)
  %grad = (bf16[2,4,16,8]{3,1,2,0}, bf16[2,4,16,8]{3,1,2,0}, u8[9]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmaxBackward", \
backend_config={"intermediate_tensor_shape": {"dimensions": ["2", "4", "16", "16"]}}
  ROOT %either = f32[8]{0} conditional(%which, %x, %x), branch_computations={%one, %other}
}
""".replace('\\\n', '')


def test_branches_are_run_and_attention_takes_five_products_back():
  found = gpu_program.work(_BRANCHES)
  assert found.flops == 5 * 2 * (2 * 4 * 16 * 16) * 8
  assert found.bytes_moved == 3 * (2 * 4 * 16 * 8 * 2) + 2 * 8 * 4
