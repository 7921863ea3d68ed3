"""The words of the report, each with one sentence. docs/reference/glossary.md has the same sentences."""

from __future__ import annotations

GLOSSARY = {
    "95% interval": "in about 95 of 100 such measurements, this range contains the true value",
    "AP": "average precision: how well the probabilities rank the posters of one genre, from the share of the genre "
    "(random) to 1",
    "baseline": "a rule that does not look at the picture; a useful model is better than all baselines",
    "calibration error": "how far the probabilities are from the observed shares, on average; 0 is best",
    "control": "a copy of the poster on which areas shaped like the text are painted over at other, random places",
    "F1": "the harmonic mean of precision and recall; F0.5 gives precision more weight",
    "flip": "a genre that is named for one of two pictures and not for the other",
    "lift": "the number of posters with both genres, divided by the number for independent genres",
    "logit": "the output of the model before the sigmoid, after calibration; 0 is a probability of 0.5",
    "loss": "the binary cross-entropy of the probabilities in nats; lower is better",
    "macro": "the mean over the genres: a rare genre counts as much as a common one",
    "mAP": "the mean of AP over the genres",
    "micro": "all pairs of a poster and a genre counted together: common genres count more",
    "p": "how often chance alone would show a difference of this size, after the correction of Holm for all rows",
    "precision": "the share of the named genres that are right",
    "recall": "the share of the true genres that the model names",
    "re-encoding": "saving the raw poster again as JPEG, which alone changes probabilities slightly",
    "ROC-AUC": "how often a poster with the genre has a higher probability than a poster without it; 0.5 is random",
    "subset accuracy": "the share of posters for which all genres are right",
    "support": "the number of posters of this split that have the genre",
    "threshold": "a genre is named if its probability reaches the threshold",
}
