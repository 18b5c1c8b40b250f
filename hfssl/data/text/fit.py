"""A tokenizer and a corpus held against each other: what the tokens say nothing of, and where that is too much."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import regex
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ...modeling.tokenizer import table_size, working_copy
from .rows import TextRows


# Of held-out text; enough to see a share of one in ten thousand.
MAX_CHARACTERS = 1_000_000
# Of one text: a long one says no more than its beginning.
MAX_CHARACTERS_OF_A_TEXT = 20_000
# Share of [UNK] among the tokens above which nothing is left to learn.
MAX_UNKNOWN = 0.5
# What is lost of a script that is less of the text is not worth a word.
MIN_SHARE_OF_A_SCRIPT = 0.001
MIN_LOST_OF_A_SCRIPT = 0.001
# Shorter texts may well be one word.
MIN_TOKENS_TO_JUDGE = 8
MAX_WITHOUT_WORDS = 0.1

# Marks of no script in particular, such as the acute accent. Those of kana make another sound.
_ACCENT = regex.compile(r"[\p{Inherited}--[\u3099\u309A]]", regex.V1)


@dataclass(frozen=True)
class TokenizerFit:
    """What a tokenizer keeps of some texts.

    Args:
        entries, tokens (`int`):
            Of the tokenizer, and those that it makes of the texts.
        unknown (`float`):
            Share of the tokens that are its token for the unknown.
        lost, accents_lost (`float`):
            Shares of the letters, and of the accents on letters, that do not come back from the tokens. Case and
            compatibility forms do not count. Marks that are letters of their script, such as the vowel signs of
            Devanagari, are letters and no accents.
        lost_by_script (`dict[str, float]`):
            Share of the letters of each script, where it is worth a word.
        examples (`str`):
            Letters that are lost, the most frequent first.
        asked (`int`, *optional*):
            Entries that were to be filled, where the tokenizer was trained.
    """

    entries: int
    tokens: int
    unknown: float
    lost: float
    accents_lost: float
    lost_by_script: dict[str, float]
    examples: str
    asked: int | None = None

    def __str__(self) -> str:
        asked = f" ({self.asked:,} asked for)" if self.asked else ""
        said = [
            f"{self.entries:,} entries{asked}",
            f"{_percent(self.unknown)} of {self.tokens:,} held-out tokens unknown",
        ]
        scripts = ", ".join(f"{script} {_percent(share)}" for script, share in self.lost_by_script.items())
        lost = f"{_percent(self.lost)} of the letters lost" if self.lost else "no letter lost"
        said.append(lost + (f" ({scripts})" if scripts else ""))
        if self.accents_lost:
            said.append(f"{_percent(self.accents_lost)} of the accents")
        return ", ".join(said)


def tokenizer_fit(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], asked: int | None = None) -> TokenizerFit:
    """Hold a tokenizer against texts: their tokens are turned back into text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A fast tokenizer. It stays as it is.
        texts (`Iterable[str]`):
            Of the corpus, best those that no tokenizer was trained on.
        asked (`int`, *optional*):
            Entries that were to be filled, where the tokenizer was trained.
    """
    taken, length = [], 0
    for text in texts:
        taken.append(text[:MAX_CHARACTERS_OF_A_TEXT])
        length += len(taken[-1])
        if length >= MAX_CHARACTERS:
            break
    backend = working_copy(tokenizer).backend_tokenizer
    if backend.decoder is None and "ByteLevel" in str(backend.pre_tokenizer):
        backend.decoder = decoders.ByteLevel()
    ids = [encoding.ids for encoding in backend.encode_batch_fast(taken, add_special_tokens=False)]
    tokens, unknown = Counter(chain.from_iterable(ids)), tokenizer.unk_token_id
    there, back = _letters(taken), _letters(backend.decode_batch(ids))
    lost = there - back
    accents = {letter for letter in there if _ACCENT.match(letter)}
    of_script, lost_of_script = Counter(), Counter()
    for counts, by_script in ((there, of_script), (lost, lost_of_script)):
        for letter, count in counts.items():
            if letter not in accents:
                by_script[_script(letter)] += count
    letters = of_script.total()
    shares = {script: lost_of_script[script] / count for script, count in of_script.most_common()}
    return TokenizerFit(
        entries=table_size(tokenizer),
        tokens=tokens.total(),
        unknown=tokens[unknown] / max(tokens.total(), 1) if unknown is not None else 0.0,
        lost=lost_of_script.total() / max(letters, 1),
        accents_lost=sum(lost[c] for c in accents) / max(sum(there[c] for c in accents), 1),
        lost_by_script={
            script: share
            for script, share in shares.items()
            if share > MIN_LOST_OF_A_SCRIPT and of_script[script] > MIN_SHARE_OF_A_SCRIPT * letters
        },
        examples=" ".join(c for c, _ in lost.most_common(len(accents) + 8) if c not in accents),
        asked=asked,
    )


def check_fit_to_corpus(fit: TokenizerFit, max_lost_fraction: float, remedies: Sequence[str]) -> None:
    """Refuse a tokenizer that loses too much of a corpus.

    Args:
        fit ([`TokenizerFit`]):
            Of held-out texts.
        max_lost_fraction (`float`):
            `--max_lost_fraction`: share of the letters that may be lost.
        remedies (`Sequence[str]`):
            What can be done about it.

    Raises:
        UserError: where more of the letters are lost, or more than `MAX_UNKNOWN` of the tokens are unknown.
    """
    of_letters, of_tokens = fit.lost > max_lost_fraction, fit.unknown > max(MAX_UNKNOWN, max_lost_fraction)
    if not of_letters and not of_tokens:
        return
    # up to the next per cent, so that it is enough
    enough = math.ceil(100 * max(fit.lost * of_letters, fit.unknown * of_tokens)) / 100
    limit = f"{_percent(max_lost_fraction)} of the letters may be lost"
    if not of_letters:
        limit = f"{_percent(max(MAX_UNKNOWN, max_lost_fraction))} of the tokens may be unknown"
    said = [f"The tokenizer does not fit the corpus: {fit}.", f"At most {limit}."]
    said += [f"Lost letters are {fit.examples}."] if fit.examples else []
    raise UserError(
        " ".join([*said, *remedies, f"To train with what is left of the text, pass `--max_lost_fraction {enough}`."])
    )


def check_words(rows: TextRows, texts: Sequence[str]) -> str:
    """Refuse whole-word masking where the words are whole texts: they would be hidden or not, nothing to learn from.

    Args:
        rows ([`~hfssl.data.text.rows.TextRows`]):
            With `whole_word_masking`.
        texts (`Sequence[str]`):
            Of the corpus.

    Returns:
        `str`: how many words a text has, and how they were found.

    Raises:
        UserError: where of more than `MAX_WITHOUT_WORDS` of the texts most tokens are one word.
    """
    lengths = rows.word_lengths([text[:MAX_CHARACTERS_OF_A_TEXT] for text in texts])
    long = [of for of in lengths if of.sum() >= MIN_TOKENS_TO_JUDGE]
    single = sum(2 * int(of.max()) > of.sum() for of in long)
    if single > MAX_WITHOUT_WORDS * len(long):
        raise UserError(
            f"`--whole_word_masking` hides words, but in {single:,} of {len(long):,} held-out texts of "
            f"{MIN_TOKENS_TO_JUDGE} tokens or more, most tokens are a single word to the tokenizer, which finds words "
            "by spaces and punctuation. Leave it out, so that single tokens are hidden."
        )
    mean = sum(map(len, lengths)) / max(len(lengths), 1)
    found = str(rows.segmenter)
    hint = ' (for words, `pip install "hfssl[scripts]"`)' if rows.segmenter.more_can_be_installed else ""
    return f"{mean:.1f} a text" + (f", {found}{hint}" if found else "")


def _letters(texts: Iterable[str]) -> Counter:
    """The letters of texts and their marks, taken apart and without case."""
    counts = Counter()
    for character, count in Counter(chain.from_iterable(texts)).items():
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
        for part in folded:
            if unicodedata.category(part)[0] in "LM":
                counts[part] += count
    return counts


def _script(letter: str) -> str:
    """Of its script, the name as Unicode's names of characters begin."""
    name = unicodedata.name(letter, "").removeprefix("COMBINING ").partition(" ")[0].partition("-")[0]
    return {"": "others", "CJK": "Han"}.get(name, name.capitalize())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else f"{100 * share:.3f} %"
