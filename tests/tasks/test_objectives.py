"""The direction of an objective, smaller or larger is better: given, or inferred from its name, never guessed."""

from types import SimpleNamespace
from typing import Any

import pytest

from weightspace.errors import WeightspaceError
from weightspace.tasks import mode_of_name, objective_value
from weightspace.tasks.objectives import function_mode, task_mode

LOWER = (
    "loss val_loss validation_loss ValidationLoss loss_test mse rmse val-rmse mean_squared_error error top1_error "
    "error_rate word_error_rate wer cer perplexity ppl nll neg_log_likelihood negative_accuracy MSE cross_entropy "
    "hamming_loss mae_mean brier_score neg_r2 FID ece"
)
HIGHER = (
    "accuracy acc top5_accuracy accuracy_top1 Accuracy@1 balanced_accuracy f1 f1_macro macro_f1 roc_auc auroc AUC bleu "
    "rougeL rouge_l mIoU miou mAP recall_at_10 ndcg@10 neg_log_loss neg_mean_squared_error negLoss r2 log_likelihood "
    "exact_match hit_rate"
)


@pytest.mark.parametrize(
    ("name", "mode"), [(name, "min") for name in LOWER.split()] + [(name, "max") for name in HIGHER.split()]
)
def test_standard_names_of_objectives_imply_their_direction(name: str, mode: str) -> None:
    assert mode_of_name(name) == mode


@pytest.mark.parametrize(
    "name", ["score", "quality", "loss_ratio", "latency", "metric", "x", "", "__", "rate", "macro"]
)
def test_other_names_imply_no_direction(name: str) -> None:
    assert mode_of_name(name) is None


def task(objective: str, **more: Any) -> Any:
    return SimpleNamespace(name="mine", objective=objective, **more)


@pytest.mark.parametrize("objective", ["mse", "rmse", "error", "wer", "perplexity"])
def test_errors_are_negated(objective: str) -> None:
    assert objective_value(task(objective), {objective: 2.0}) == -2


def test_an_explicit_mode_overrides_the_name() -> None:
    assert task_mode(task("loss")) == "min"
    assert task_mode(task("loss", mode="max")) == "max"
    assert task_mode(task("loss", mode="max"), "min") == "min"
    assert task_mode(task("quality", mode=None), "max") == "max"
    assert objective_value(task("quality", mode="min"), {"quality": 3.0}) == -3


def test_a_name_that_is_not_known_stops() -> None:
    with pytest.raises(WeightspaceError, match=r"objective 'quality'.*Set mode=\"min\" or mode=\"max\""):
        objective_value(task("quality"), {"quality": 1.0})
    with pytest.raises(WeightspaceError, match=r"Unknown mode 'minimum'.*Did you mean 'min'"):
        task_mode(task("quality", mode="minimum"))


def test_of_a_function_more_is_better_unless_its_name_is_that_of_an_error() -> None:
    def quality(state: Any) -> float: ...
    def validation_mse(state: Any) -> float: ...

    assert function_mode(quality) == function_mode(lambda state: 0.0) == function_mode(object()) == "max"
    assert function_mode(quality, "min") == function_mode(validation_mse, "min") == "min"
    assert function_mode(validation_mse, "max") == "max"
    with pytest.raises(WeightspaceError, match="called 'validation_mse'"):
        function_mode(validation_mse)
