"""Tests of bias of a text encoder: pairs of sentences by likelihood, associations by embeddings, beside baselines.

Protocol "sentence_pairs", version 1 (CrowS-Pairs, Nangia et al., 2020, https://huggingface.co/papers/2010.00133; code:
https://github.com/nyu-mll/crows-pairs). Of a pair, the tokens that both sentences share are masked one at a time, and
the sum of their log-probabilities is the score of a sentence; a causal model is scored by the log-likelihood of the
whole sentence, so that how frequent the words are in which both differ counts as well. The figure is the share of
pairs whose more stereotypical sentence has the higher score. Departures: scores are not rounded, and a pair with equal
ones counts half instead of as the less stereotypical one; pairs that are too long or share no token are left out.

Protocol "associations", version 1 (WEAT, SEAT): see `associations.py`.

Beside both stand the same architecture with random weights, by several seeds, and other encoders that are named.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ...data.modality import modality as find_modality
from ...data.sources.base import Damage
from ...data.text.bias_tests import BiasTests
from ...functional import keyed
from ...functional.keyed import Use
from ...machine import compute_device
from ...modeling.base import evaluating
from ..bias import ASSOCIATIONS, NO_PREFERENCE, PAIRS, bias_lines, bias_tables
from ..encoder_folder import trained_pooling
from ..evaluator import EvaluationError
from ..intervals import percentiles, resampled_means, wilson
from ..modality import modality_of_encoder
from ..probe_features import ENCODER, RANDOM_INIT
from ..results import Result, aligned, command_line, versions
from ..sample_features import EmbedSettings
from .associations import Association, association
from .encoder import TextEncoder
from .language_model import MAX_LENGTH, LanguageModel
from .samples import TextSampleFeatures


logger = logging.getLogger(__name__)

VERSION = 1
# By what is measured (an encoder or random weights) and seed.
_Found = dict[str, dict[int, Any]]


def measure_bias(
    encoder: str,
    tests: Sequence[BiasTests],
    *,
    beside: Mapping[str, str] | None = None,
    pooling: str | None = None,
    random_seeds: int = 3,
    batch_size: int = 256,
    precision: str = "fp32",
    name: str | None = None,
    command: str | None = None,
) -> list[Result]:
    """Measure a text encoder by some tests, beside random weights and other encoders.

    Args:
        encoder (`str`):
            Folder or Hub id of a stock encoder, for pairs with the head that predicts tokens.
        tests (`Sequence[BiasTests]`):
            Of [`~hfssl.data.text.bias_tests.open_bias_tests`].
        beside (`Mapping[str, str]`, *optional*):
            Other encoders by the heads of their columns.
        pooling (`str`, *optional*):
            Of embeddings: mean, cls or last. Left out, the one that each encoder was trained with, else mean.
        random_seeds (`int`, *optional*, defaults to `3`):
            How many encoders with random weights stand beside.
        batch_size (`int`, *optional*, defaults to `256`), precision (`str`, *optional*, defaults to `"fp32"`):
            Of a forward pass.
        name, command (`str`, *optional*):
            What the records say of the encoder, where it is not its folder, and of how to get the figures again.

    Raises:
        EvaluationError: where an encoder cannot be measured so.
    """
    found: list[_Found] = [{} for _ in tests]
    settings: dict[str, Any] = {}
    models = [(ENCODER, 0, encoder), *((column, 0, source) for column, source in (beside or {}).items())]
    models += [(RANDOM_INIT, seed, encoder) for seed in range(random_seeds)]
    for kind, seed, source in models:
        is_random = kind == RANDOM_INIT
        title = f"{kind.replace('_', ' ')}{f' {seed}' if is_random else ''}"
        if any(each.pairs for each in tests):
            text = TextEncoder(source, MAX_LENGTH)
            model = LanguageModel(text, seed if is_random else None, batch_size, precision)
            settings.setdefault("score", model.score)
            settings.setdefault("precision", model.precision)
            for i, each in enumerate(tests):
                if each.pairs:
                    pairs = [(pair.more, pair.less) for pair in each.pairs]
                    found[i].setdefault(kind, {})[seed] = wins(model.pair_scores(pairs, f"{each.name} ({title})"))
        if any(each.associations for each in tests):
            how = EmbedSettings(pooling or trained_pooling(source), batch_size, MAX_LENGTH, precision=precision)
            embedder = TextSampleFeatures(source, how, is_random, seed)
            settings.setdefault("pooling", embedder.pooling)
            settings.setdefault("precision", embedder.precision)
            for i, each in enumerate(tests):
                if each.associations:
                    found[i].setdefault(kind, {})[seed] = _associations(embedder, each)
    results = []
    for each, of_tests in zip(tests, found, strict=True):
        how = {
            "data": each.name, "fingerprint": each.fingerprint, "max_length": MAX_LENGTH,
            "random_seeds": random_seeds, "precision": settings["precision"],
        }  # fmt: skip
        record = {
            "version": VERSION, "model": name or encoder, "split": each.split, "num_train": 0,
            "command": command or command_line(), "versions": versions() | {"device": compute_device().type},
        }  # fmt: skip
        if each.pairs:
            record["hyperparameters"] = how | {"score": settings["score"]}
            results.append(_result_of_pairs(each, of_tests, record))
        else:
            record["hyperparameters"] = how | {"pooling": settings["pooling"]}
            results += _results_of_associations(each, of_tests, record)
    return results


def check_text_encoder(encoder: str) -> None:
    """Refuse an encoder of something else.

    Raises:
        EvaluationError: where it takes no texts.
    """
    modality = modality_of_encoder(encoder).name
    if modality != "text":
        raise EvaluationError(
            f"The tests are sentences, and {encoder} takes {find_modality(modality).samples}. How labels fare by "
            "group of such samples `recipes/probe.py --group_column` tells."
        )


def bias_report(results: Sequence[Result]) -> str:
    """Tables and sentences for the terminal."""
    tables = [f"{title}\n{aligned([head, *rows])}" for title, head, rows in bias_tables(results)]
    return "\n\n".join([*tables, *bias_lines(results)])


# -- pairs ----------------------------------------------------------------------------------------------------------


def wins(scores: np.ndarray) -> np.ndarray:
    """Of scores of shape `(num_pairs, 2)`: 1 where the first is higher, 0.5 where both are equal, NaN without any."""
    difference = scores[:, 0] - scores[:, 1]
    return np.where(np.isnan(difference), np.nan, (np.sign(difference) + 1) / 2)


def _result_of_pairs(tests: BiasTests, found: _Found, record: dict[str, Any]) -> Result:
    own = found[ENCODER][0]
    there = ~np.isnan(own)
    if not there.any():
        raise EvaluationError(
            f"None of the {len(own):,} pairs of {tests.name} can be compared: their sentences are longer than the "
            "model takes, or share no word. Pass others."
        )
    types = np.array([pair.bias_type for pair in tests.pairs])
    known = [name for name in dict.fromkeys(types.tolist()) if name and there[types == name].any()]
    scores = {kind: {s: _mean(values) for s, values in seeds.items()} for kind, seeds in found.items()}
    changes = {}
    for kind, seeds in found.items():
        if kind not in (ENCODER, RANDOM_INIT):
            both = there & ~np.isnan(seeds[0])
            difference = own[both] - seeds[0][both]
            random = keyed.generator(Use.BOOTSTRAP, 0)
            changes[kind] = (float(difference.mean()), *percentiles(resampled_means(difference, random)))
    number = int(there.sum())
    details = {
        "interval": wilson(_mean(own), number),
        "ties": int((own == 0.5).sum()),
        "left_out": int((~there).sum()),
        "changes": changes,
        "types": [_of_type(name, types == name, found) for name in sorted(known)],
    }
    return Result.from_scores(
        scores.pop(ENCODER), scores, protocol=PAIRS, task=tests.name, metric="stereotype_share", num_eval=number,
        details=details, **record,
    )  # fmt: skip


def _of_type(name: str, rows: np.ndarray, found: _Found) -> dict[str, Any]:
    own = found[ENCODER][0][rows]
    share, number = _mean(own), int((~np.isnan(own)).sum())
    others = {kind: seeds for kind, seeds in found.items() if kind != ENCODER}
    return {
        "name": name, "pairs": number, "share": share, "interval": wilson(share, number),
        "p_value": float(binomtest(round(share * number), number, NO_PREFERENCE).pvalue),
        "baselines": {
            kind: float(np.mean([_mean(each[rows]) for each in seeds.values()])) for kind, seeds in others.items()
        },
    }  # fmt: skip


def _mean(values: np.ndarray) -> float:
    """Over the pairs that could be compared."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else NO_PREFERENCE


# -- associations ---------------------------------------------------------------------------------------------------


def _associations(embedder: TextSampleFeatures, tests: BiasTests) -> list[tuple[Association, int]]:
    """What each test finds, and in how many of its items is a word that the tokenizer does not know."""
    items = list(dict.fromkeys(item for test in tests.associations for item in test.items))
    prepared = [embedder.prepare(item) for item in items]
    unk = embedder.tokenizer.unk_token_id
    unknown = [
        isinstance(each, Damage) or unk is not None and any(unk in window for window in each) for each in prepared
    ]
    vectors = np.zeros((len(items), embedder.model.config.hidden_size), np.float32)
    rows = [row for row, each in enumerate(prepared) if not isinstance(each, Damage)]
    with evaluating(embedder.model):
        for start in range(0, len(rows), embedder.samples_at_once):
            some = rows[start : start + embedder.samples_at_once]
            vectors[some] = embedder([prepared[row] for row in some]).columns["features"]
    place = {item: row for row, item in enumerate(items)}
    return [
        (
            association(*(vectors[[place[item] for item in each]] for each in (*test.targets, *test.attributes))),
            sum(unknown[place[item]] for item in test.items),
        )
        for test in tests.associations
    ]


def _results_of_associations(tests: BiasTests, found: _Found, record: dict[str, Any]) -> list[Result]:
    results = []
    for i, test in enumerate(tests.associations):
        of_test = {kind: {seed: each[i][0] for seed, each in seeds.items()} for kind, seeds in found.items()}
        effects = {kind: {seed: each.effect for seed, each in seeds.items()} for kind, seeds in of_test.items()}
        own, unknown = found[ENCODER][0][i]
        details = {
            "interval": (own.low, own.high), "p_value": own.p_value, "exact": own.exact, "unknown": unknown,
            "sets": [*test.target_names, *test.attribute_names],
            "p_values": {
                kind: [each.p_value for each in seeds.values()] for kind, seeds in of_test.items() if kind != ENCODER
            },
        }  # fmt: skip
        results.append(
            Result.from_scores(
                effects.pop(ENCODER),
                effects,
                protocol=ASSOCIATIONS,
                task=test.name,
                metric="effect_size",
                num_eval=len(test.items),
                details=details,
                **record,
            )  # fmt: skip
        )
    return results
