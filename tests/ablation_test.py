import copy

from jaxface.ablation import CLAIMS, PUBLISHED, judge, side_by_side


def test_the_published_table_holds_its_own_claims():
  assert set(judge(PUBLISHED).values()) == {'held'}


def test_every_claim_can_fail():
  for broken, (variant, metric, value) in zip(
    CLAIMS,
    [('mask_l1', 'ssim', 0.1), ('nomask_l1', 'vif', 0.9), ('mask_ssim', 'ssim', 0.99), ('mask_ssim', 'l1', 0.01)],
    strict=True,
  ):
    results = copy.deepcopy(PUBLISHED)
    results[variant][metric] = value
    assert judge(results)[broken.text] == 'not held', broken.text


def test_missing_variants_are_not_judged_and_missing_metrics_not_compared():
  assert set(judge({'mask_l1': PUBLISHED['mask_l1']}).values()) == {'not judged'}
  without_lpips = {v: {k: x for k, x in row.items() if k != 'lpips'} for v, row in PUBLISHED.items()}
  assert set(judge(without_lpips).values()) == {'held'}
  assert '- (0.144)' in side_by_side(without_lpips)
