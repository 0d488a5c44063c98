import copy
import types

import pytest
from ml_collections import ConfigDict

from jaxface import ablation
from jaxface.ablation import CLAIMS, PUBLISHED, judge, side_by_side


def test_the_published_table_holds_its_own_claims():
  assert set(judge(PUBLISHED).values()) == {'held'}


@pytest.mark.parametrize(
  ('claim', 'variant', 'metric', 'value'),
  [
    *((0, f'mask_{loss}', 'ssim', 0.1) for loss in ('l1', 'l2', 'ssim_l1', 'ssim_l2')),
    *((0, 'mask_l1', metric, 0.9) for metric in ('lpips', 'l1', 'rmse')),
    (1, 'nomask_l1', 'vif', 0.9),
    (1, 'mask_ssim', 'rmse', 0.01),
    (2, 'mask_ssim', 'ssim', 0.99),
    *((3, f'{mask}_ssim', metric, 0.01) for mask in ('mask', 'nomask') for metric in ('l1', 'rmse')),
    *((3, f'mask_{loss}', 'l1', 0.9) for loss in ('ssim_l1', 'ssim_l2')),
  ],
)
def test_every_claim_can_fail_by_each_of_its_numbers(claim, variant, metric, value):
  results = copy.deepcopy(PUBLISHED)
  results[variant][metric] = value
  assert judge(results)[CLAIMS[claim].text] == 'not held'


def test_each_number_stands_beside_its_published_one():
  results = {'mask_l1': {name: i / 8 for i, name in enumerate(('ssim', 'ms_ssim', 'lpips', 'vif', 'l1', 'rmse'))}}
  header, row = side_by_side(results).splitlines()
  assert header.split() == ['variant', 'ssim', 'ms_ssim', 'lpips', 'vif', 'l1', 'rmse']
  expected = 'mask_l1 0.0000 (0.657) 0.1250 (0.905) 0.2500 (0.152) 0.3750 (0.459) 0.5000 (0.0534) 0.6250 (0.0774)'
  assert ' '.join(row.split()) == expected


def test_faces_are_measured_on_the_true_background_by_the_best_of_each_run(tmp_path, monkeypatch):
  asked = []

  def evaluate(workdirs, **options):
    asked.append((workdirs, options))
    return {'mask_l1': {'loss': 9.0, 'whole/l1': 2.0, 'true_mask/l1': 0.5, 'predicted_mask/l1': 3.0, 'mask/iou': 1.0}}

  outcome = types.SimpleNamespace(finished=True)
  monkeypatch.setattr(ablation, 'open_dataset', lambda *_, **__: None)
  monkeypatch.setattr(ablation, 'train', lambda config, workdir: outcome)
  monkeypatch.setattr(ablation, 'evaluate_runs', evaluate)
  config = ConfigDict({'data': {'name': 'faces', 'data_dir': ''}, 'model': {'image_size': 16}})
  found = ablation.ablation(lambda variant: config, tmp_path, variants=['mask_l1'], split='validation')
  assert found == {'mask_l1': {'l1': 0.5}}
  told = {'split': 'validation', 'data_dir': None, 'out': tmp_path}
  assert asked == [([tmp_path / 'mask_l1'], told)]


def test_missing_variants_are_not_judged_and_missing_metrics_not_compared():
  assert set(judge({'mask_l1': PUBLISHED['mask_l1']}).values()) == {'not judged'}
  without_lpips = {v: {k: x for k, x in row.items() if k != 'lpips'} for v, row in PUBLISHED.items()}
  assert set(judge(without_lpips).values()) == {'held'}
  assert '- (0.144)' in side_by_side(without_lpips)
