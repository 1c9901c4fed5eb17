#!/usr/bin/env bash
# Makes the demo in checkpoints/demo/ again, from public data to the app. Three hours on two CPU cores.
#
#   make demo      # or: bash train/demo.sh; after an interruption, the same command resumes
#
# Each step names its time on one busy core and the numbers to expect. results/ has them all, with intervals.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
recipes=${RECIPES:-recipes}
export PRO_DATA_DIR=${PRO_DATA_DIR:-data}

# 1. Data: human preferences from four public sets, in one schema. Minutes, mostly downloads.
sets="hh_pairs truthfulqa_responses xstest_responses colbert_humor_texts"
for name in $sets; do
  test -f "$PRO_DATA_DIR/$name.jsonl.gz" || $python train/prepare_data.py "$PRO_DATA_DIR" "$name"
done

# 2. Five reward models on one small trunk, and out-of-fold scores. An hour.
#    Accuracy on test pairs: helpful .60, harmless .62, truthful .81, informative .94, humor .99.
$python train/reward_models.py "$recipes/demo_panel.yaml"
$python train/evaluate.py reward_models "$recipes/demo_panel.yaml" --results outputs/demo/results
panel=outputs/demo_panel/panel

# 3. The adapter: 18 targets with five seeds, and the best of them on validation pairs. Half an hour.
#    Accuracy of the weighted sum on test pairs: .607, uniform weights .581.
$python train/adapter.py "$recipes/demo_adapter.yaml"
$python train/evaluate.py adapter "$recipes/demo_adapter.yaml" --results outputs/demo/results
adapter=outputs/demo_adapter/adapter

# 4. The policy: five LoRAs trained with GRPO, each on one reward alone, then mixed as the soup writes. 45 minutes.
#    Rank correlation of a weight and its score on held-out prompts: helpful .51, harmless .25, truthful .54,
#    informative .28, humor .49.
$python train/morlhf.py "$recipes/demo_morlhf.yaml" panel=$panel
$python train/soups.py "$recipes/demo_soup.yaml"
policy=outputs/demo_soup/policy
$python train/evaluate.py policies "$recipes/demo_soup_evaluation.yaml" panel=$panel adapter=$adapter \
  policies.2.model=$policy --results outputs/demo/results --figures outputs/demo/figures

# 5. The app.
PRO_PANEL=$panel PRO_ADAPTER=$adapter PRO_POLICY=$policy exec $python app.py "$@"
