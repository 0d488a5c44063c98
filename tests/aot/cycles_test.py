"""The cycles of a TPU's program, against the same counted by hand."""

import pytest

from jaxface.aot.cycles import cycles

# Shortened to what is read; the way of writing is that of libtpu 0.0.42.
_PROGRAM = """
HloModule jit_step, is_scheduled=true

%fused (p.0: f32[8,128]) -> f32[8,128] {
  %p.0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %inner = f32[8,128]{1,0:T(8,128)} copy(%p.0), backend_config={"w":{"estimated_cycles":"1000000"}}
}

%condition (s.0: (s32[], f32[8,128])) -> pred[] {
  %s.0 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %name = s32[]{:T(128)} get-tuple-element(%s.0), index=0
  %limit = s32[]{:T(128)} constant(31)
  ROOT %lt = pred[]{:T(512)} compare(%name, %limit), direction=LT
}

%body (t.0: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %t.0 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %work = f32[8,128]{1,0:T(8,128)} fusion(%t.0), calls=%fused, backend_config={"w":{"estimated_cycles":"10"}}
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%t.0, %work)
}

%short (u.0: f32[8,128]) -> f32[8,128] {
  %u.0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %one = f32[8,128]{1,0:T(8,128)} copy(%u.0), backend_config={"w":{"estimated_cycles":"5"}}
}

%long (v.0: f32[8,128]) -> f32[8,128] {
  %v.0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %two = f32[8,128]{1,0:T(8,128)} copy(%v.0), backend_config={"w":{"estimated_cycles":"7"}}
}

ENTRY %main.1 (a: f32[8,128], b: pred[]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = pred[]{:T(512)} parameter(1)
  %first = f32[8,128]{1,0:T(8,128)} fusion(%a), calls=%fused, backend_config={"w":{"estimated_cycles":"100"}}
  %start = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%first, %first)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  %either = f32[8,128]{1,0:T(8,128)} conditional(%b, %a, %a), true_computation=%long, false_computation=%short
  ROOT %called = f32[8,128]{1,0:T(8,128)} call(%either), to_apply=%short
}
"""


def test_loops_count_in_full_and_of_branches_the_longest():
  assert cycles(_PROGRAM) == 100 + 31 * 10 + 7 + 5


@pytest.mark.parametrize('limit', ['parameter(1)', 'constant({...})'])
def test_a_loop_of_unknown_length_counts_once(limit):
  assert cycles(_PROGRAM.replace('constant(31)', limit)) == 100 + 10 + 7 + 5
