"""The direction of an objective: whether a higher or a lower score is better.

A task declares it (``mode``), or the name of its objective implies it. An unknown name is an error, never a guess: a
soup that maximises an error would select the worst networks.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Literal, TypeAlias, get_args

from weightspace.errors import WeightspaceError, WeightspaceWarning
from weightspace.suggestions import unknown

#: ``"max"``: higher is better; ``"min"``: lower is better.
Mode: TypeAlias = Literal["min", "max"]

#: Names of scores, or their last words, for which lower is better.
_LOWER = """
loss losses error errors err mse rmse mae mape smape msle rmsle nrmse medae wer cer eer perplexity ppl nll bpc bpb
bits_per_byte bits_per_character cross_entropy crossentropy xent brier brier_score ece mce calibration_error fid kid kl
divergence deviance distance severity regret risk cost lpips chamfer residual
"""
#: Names of scores, or their last words, for which higher is better.
_HIGHER = """
accuracy accuracies acc f1 fbeta f1_score auc auroc auprc roc_auc pr_auc average_precision precision recall sensitivity
specificity similarity map map50 ap bleu sacrebleu chrf rouge rouge1 rouge2 rougel rougelsum rouge_l meteor cider spice
bertscore comet iou miou jaccard dice r2 r2_score explained_variance psnr ssim mrr ndcg hit_rate hits mcc kappa
matthews_corrcoef pearson spearman correlation exact_match em likelihood log_likelihood loglikelihood elbo reward
win_rate pass_rate
"""
_MODES: dict[str, Mode] = {
    **dict.fromkeys(_LOWER.split(), "min"),
    **dict.fromkeys(_HIGHER.split(), "max"),
}
#: Words that reverse the direction: scikit-learn's ``neg_log_loss`` is better when it is higher.
_NEGATED = re.compile(r"^(neg|negative|minus)_")
#: Qualifiers at the end of a name that don't change its direction: ``accuracy_top1``, ``loss_val``, ``f1_macro``.
_QUALIFIER = re.compile(r"_(top_?\d+|at_?\d+|\d+|mean|avg|average|macro|micro|weighted|val|valid|validation|test|dev)$")


def mode_of_name(name: str) -> Mode | None:
    """Return the direction of a score implied by its name, or None if the name doesn't imply one.

    Args:
        name: name of a score, such as ``"mse"``, ``"val_loss"``, ``"top5_accuracy"`` or ``"neg_log_loss"``.
    """
    camel = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)  # ValidationLoss, but keep mIoU
    return _mode_of_words(name) or _mode_of_words(camel)


def _mode_of_words(name: str) -> Mode | None:
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if negated := _NEGATED.match(plain):
        return _opposite(_mode_of_words(plain[negated.end() :]))
    while (shorter := _QUALIFIER.sub("", plain)) != plain:
        plain = shorter
    words = plain.split("_")
    for ending in ("_".join(words[start:]) for start in range(len(words))):  # the longest known ending decides
        if ending in _MODES:
            return _MODES[ending]
    if words[-1] == "rate" and len(words) > 1:
        return _mode_of_words("_".join(words[:-1]))
    return None


def check_mode(mode: Any) -> None:
    """Check that a direction is None, ``"min"`` or ``"max"``.

    Raises:
        WeightspaceError: it is something else.
    """
    if mode is not None and mode not in get_args(Mode):
        raise unknown("mode", str(mode), get_args(Mode))


def task_mode(task: Any, mode: Mode | None = None) -> Mode:
    """Return the direction of a task's objective.

    Args:
        task: has ``objective``, and optionally ``mode``.
        mode: the caller's choice, which overrides the task's.

    Raises:
        WeightspaceError: no direction is given and the name of the objective is unknown, or a mode is neither
            ``"min"`` nor ``"max"``.
    """
    known = mode_of_name(task.objective)
    for said in (mode, getattr(task, "mode", None)):
        check_mode(said)
        if said is not None:
            if said is mode and known not in (None, said):
                warnings.warn(
                    f"The mode is {said!r}, but for the objective {task.objective!r} of task {task.name!r} "
                    f"{'higher' if known == 'max' else 'lower'} is better, judging by its name.",
                    WeightspaceWarning,
                    stacklevel=3,
                )
            return said
    if known is None:
        raise WeightspaceError(
            f"Task {task.name!r} has the objective {task.objective!r}; whether higher or lower is better is unknown. "
            'Set mode="min" or mode="max" (on the task or as an argument; --mode on the command line).'
        )
    return known


def function_mode(function: Any, mode: Mode | None = None) -> Mode:
    """Return the direction of a user's own score: ``"max"`` unless ``mode`` is given.

    Raises:
        WeightspaceError: the mode is invalid, or missing for a function named like an error.
    """
    check_mode(mode)
    name = getattr(function, "__name__", type(function).__name__)
    if mode is None and mode_of_name(name) == "min":
        raise WeightspaceError(
            f"The score function is called {name!r}, the name of a score for which lower is better, but without a "
            'mode the highest score wins. Set mode="min", or mode="max" if it returns a negated value.'
        )
    return mode or "max"


def _opposite(mode: Mode | None) -> Mode | None:
    return None if mode is None else ("max" if mode == "min" else "min")
