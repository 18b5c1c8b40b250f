"""Tokenizers of text: train one on a sample of the corpus, load one, and say what is wrong with one."""

import json
import logging
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from pathlib import Path

import regex
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ...errors import UserError, first_line
from ...modeling.tokenizer import working_copy


logger = logging.getLogger(__name__)

# Their order gives the ids 0 to 4.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Padding has a token of its own: collators that give padding no label would otherwise hide every end of a text.
BPE_SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>")
# Share of a corpus that the alphabet of a vocabulary covers: what is rarer has hardly an embedding to learn.
COVERAGE = 0.9999
# The least that a vocabulary of a size that was asked for must cover.
MIN_COVERAGE = 0.99
# A word of more than 100 characters is one [UNK] to WordPiece. Of ordinary text such words are addresses and noise.
_LONG_WORD = regex.compile(r"[[\p{L}\p{M}\p{N}\p{S}]--[\p{Han}]]{101,}", regex.V1)
_WITHOUT_SPACE = re.compile(r"\S{101,}")  # ten times as fast
MAX_IN_LONG_WORDS = 0.001
# In letters with their marks, of which three characters are many.
PIECE_OF_A_LONG_WORD = 32


def choose_vocab_size(num_characters: int) -> int:
    """Entries of a vocabulary that is trained on so many characters.

    One entry per 200 characters: about 40 words, so that even the rare half of the entries is seen often enough to
    learn an embedding. At least 8,192, below which words fall into pieces and rows hold little text; at most 30,528,
    BERT's 30,522 rounded up, beyond which a small encoder is mostly embeddings. A multiple of 64, which suits the
    matrix units of GPUs.

    Args:
        num_characters (`int`):
            Size of the sample.

    Example:

    ```python
    >>> choose_vocab_size(1_300_000), choose_vocab_size(3_000_000), choose_vocab_size(50_000_000)
    (8192, 15040, 30528)
    ```
    """
    return min(max(-(-num_characters // 200 // 64) * 64, 8_192), 30_528)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int | None = None,
    *,
    lowercase: bool = True,
    strip_accents: bool = False,
    model_max_length: int = 512,
) -> PreTrainedTokenizerBase:
    """Train a WordPiece tokenizer, BERT's kind. The same texts give the same tokenizer.

    The alphabet follows the corpus: its characters have entries of their own, so that next to none becomes `[UNK]`.
    Where BERT ignores case it also strips all marks, which are accents in some scripts and vowels in others: here they
    stay unless `strip_accents` is asked for, and no letter of any script is lost.

    The result is a stock [`~transformers.BertTokenizer`]: saved, it loads with `AutoTokenizer`. WordPiece takes no
    words of more than 100 characters. Where the corpus has such, as scripts without spaces and sequences of bases do,
    it is a [`~transformers.PreTrainedTokenizerFast`] that breaks them before.

    Args:
        texts (`Iterable[str]`):
            Sample of the corpus.
        vocab_size (`int`, *optional*):
            Most entries of the vocabulary. A small sample fills fewer, and so do scripts whose characters are words of
            their own. Left out, it follows the sample ([`choose_vocab_size`]), and is larger where the characters
            alone take most of it.
        lowercase (`bool`, *optional*, defaults to `True`):
            Whether case is ignored.
        strip_accents (`bool`, *optional*, defaults to `False`):
            Whether marks are taken off letters, as BERT does: right for the accents of Latin, Greek and Cyrillic
            letters, wrong for scripts whose vowels are marks.
        model_max_length (`int`, *optional*, defaults to `512`):
            Tokens beyond which the tokenizer warns or truncates.

    Raises:
        UserError: if the sample holds no text, or more different characters than the vocabulary has room for.
    """
    texts = _with_text(texts)
    size = vocab_size or choose_vocab_size(sum(map(len, texts)))
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    breaks_words = _share_in_long_words(texts) > MAX_IN_LONG_WORDS
    if breaks_words:
        pieces = pre_tokenizers.Split(Regex(rf"\X{{1,{PIECE_OF_A_LONG_WORD}}}"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, pieces])
    counts = _characters(texts, backend.normalizer)
    # Rarer characters become [UNK]: corpora of the web hold some of every script.
    alphabet = list(counts)[: max(1_000, size // 8, _number_that_covers(counts, COVERAGE))]
    # The trainer numbers the characters inside words ("##a") in an order that changes from run to run, and breaks ties
    # by these numbers. A first pass without merges finds them; as special tokens they always get the same numbers.
    characters = _train(backend, texts, alphabet, SPECIAL_TOKENS, vocab_size=0)
    inside = {token[2:] for token in characters if token.startswith("##") and len(token) == 3}
    if vocab_size is None:
        # the letters of an alphabet fit; where thousands of signs make up words, so must some of the words
        size = max(size, _rounded_up(len(characters) + len(inside)) if len(characters) + len(inside) > size else 0)
    elif len(characters) > size:
        alphabet = _alphabet_that_fits(counts, alphabet, inside, size)
        inside &= set(alphabet)
    vocab = _train(backend, texts, alphabet, (*SPECIAL_TOKENS, *sorted(f"##{c}" for c in inside)), size)
    vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
    bert = BertTokenizer(
        vocab=vocab, do_lower_case=lowercase, strip_accents=strip_accents, model_max_length=model_max_length
    )
    if not breaks_words:
        return bert
    bert.backend_tokenizer.pre_tokenizer = backend.pre_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=bert.backend_tokenizer,
        model_input_names=bert.model_input_names,
        model_max_length=model_max_length,
        **{name: token for name, token in bert.special_tokens_map.items() if isinstance(token, str)},
    )


def train_bpe_tokenizer(
    texts: Iterable[str], vocab_size: int, *, model_max_length: int = 1024
) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer, GPT-2's kind, for causal models. The same texts give the same tokenizer.

    The result is a stock [`~transformers.GPT2Tokenizer`]: saved, it loads with `AutoTokenizer`. Every text comes back
    from its tokens as it was. It differs from GPT-2's in two things: a text begins with `<|endoftext|>`, as does a
    prompt, so that the first word of a document is learned and a model can begin without a prompt; and padding has a
    token of its own. No `<|endoftext|>` is added after a text, where it would end a prompt:
    [`~hfssl.data.text.rows.TextRows`] ends documents.

    Args:
        texts (`Iterable[str]`):
            Sample of the corpus.
        vocab_size (`int`):
            Most entries of the vocabulary, 256 bytes and the special tokens included. A small sample fills fewer.
        model_max_length (`int`, *optional*, defaults to `1024`):
            Tokens beyond which the tokenizer warns or truncates.

    Raises:
        UserError: if the sample holds no text, or the vocabulary has no room for the bytes.
    """
    texts = _with_text(texts)
    smallest = 256 + len(BPE_SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(
            f"A vocabulary of {vocab_size:,} entries is too small: the 256 bytes and the special tokens alone take "
            f"{smallest}. Pass a larger `--vocab_size`, e.g. {choose_vocab_size(0)}."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(BPE_SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    model = json.loads(tokenizer.to_str())["model"]
    end, pad = BPE_SPECIAL_TOKENS
    return GPT2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token=end,
        eos_token=end,
        unk_token=end,  # never needed: every byte has an entry
        pad_token=pad,
        add_bos_token=True,
        model_max_length=model_max_length,
    )


def _with_text(texts: Iterable[str]) -> list[str]:
    texts = [text for text in texts if text and not text.isspace()]
    if not texts:
        raise UserError(
            "A tokenizer cannot be trained: the sample of the corpus holds no text. Check `--dataset` and "
            "`--text_column`, or pass `--tokenizer` with the name or folder of one."
        )
    return texts


def _rounded_up(number: int) -> int:
    return -(-number // 64) * 64


def _share_in_long_words(texts: list[str]) -> float:
    """Share of the characters that lie in words of more than WordPiece takes."""
    long = chain.from_iterable(_LONG_WORD.findall(part) for text in texts for part in _WITHOUT_SPACE.findall(text))
    return sum(map(len, long)) / sum(map(len, texts))


def _characters(texts: list[str], normalizer: normalizers.Normalizer) -> dict[str, int]:
    """The characters of normalised texts and how often each occurs, the most frequent first."""
    counts = Counter()
    # the trainer's own limit drops any of the characters that are equally rare
    for character, count in Counter(chain.from_iterable(texts)).items():
        for normalized in normalizer.normalize_str(character).replace(" ", ""):
            counts[normalized] += count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _number_that_covers(counts: dict[str, int], share: float) -> int:
    """How many of the most frequent characters make up a share of the text."""
    covered = list(accumulate(counts.values()))
    return bisect_left(covered, share * covered[-1]) + 1 if covered else 0


def _alphabet_that_fits(counts: dict[str, int], alphabet: list[str], inside: set[str], vocab_size: int) -> list[str]:
    """The most frequent characters that a vocabulary has room for; an error where they are too small a share."""
    # one that also stands inside words has two entries
    entries = list(accumulate((1 + (character in inside) for character in alphabet), initial=len(SPECIAL_TOKENS)))
    fitting = alphabet[: bisect_right(entries, vocab_size) - 1] if vocab_size >= entries[0] else []
    if sum(counts[character] for character in fitting) < MIN_COVERAGE * sum(counts.values()):
        raise UserError(
            f"A vocabulary of {vocab_size:,} entries is too small for this corpus: its characters and the special "
            f"tokens alone take {entries[-1]:,}. Pass a larger `--vocab_size`, e.g. "
            f"{max(choose_vocab_size(0), _rounded_up(entries[-1]))}."
        )
    return fitting


def _train(
    tokenizer: Tokenizer, texts: list[str], alphabet: list[str], special_tokens: Sequence[str], vocab_size: int
) -> dict[str, int]:
    """The vocabulary that WordPiece training gives."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    new = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    new.normalizer, new.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    new.train_from_iterator(texts, trainer, length=len(texts))
    return new.get_vocab()


def load_tokenizer(name_or_path: str | Path, **kwargs) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained` whose errors say what to do, in seconds. The tokenizer must be a fast one.

    Without a connection to the Hub, what is in its cache is used.

    Args:
        name_or_path (`str`):
            Hub id or folder.
        kwargs (`dict`, *optional*):
            Passed to `from_pretrained`, such as `revision`.

    Raises:
        UserError: if there is no such tokenizer, or it is not a fast one.
    """
    name = str(name_or_path)
    is_local = Path(name).exists()
    problem = "" if is_local else _problem_with_hub(name, kwargs)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    # a damaged or foreign tokenizer file shows itself in many ways
    except Exception as error:
        logger.debug("The error behind the message", exc_info=True)
        if is_local:
            raise UserError(
                f"The folder {name!r} holds no tokenizer that can be loaded ({first_line(error)}). Save one there "
                "with `tokenizer.save_pretrained(folder)`, or pass `--tokenizer` with the name or folder of another."
            ) from error
        problem = problem or f"Loading it from the Hub failed: {first_line(error)}."
        raise UserError(f"The tokenizer {name!r} cannot be loaded: there is no such folder here. {problem}") from error
    for key in ("is_local", "local_files_only"):  # how it was loaded here would be saved with it
        tokenizer.init_kwargs.pop(key, None)
    # a folder that has a config but no tokenizer files gives one that knows nothing but its special tokens
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"{name!r} holds a model but no tokenizer. Pass `--tokenizer` with the name or folder of the one that the "
            "model was trained with."
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"{name!r} has a {type(tokenizer).__name__}, which is written in Python: packing and whole-word masking "
            "need a fast one, of the tokenizers library, which knows the word of each token. Pass `--tokenizer` with "
            "another."
        )
    return tokenizer


def require_mask_token(
    tokenizer: PreTrainedTokenizerBase, purpose: str = "Masked language modelling", base_model: str | None = None
) -> None:
    """Raise a [`UserError`] if the tokenizer has no mask token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Any tokenizer.
        purpose (`str`, *optional*, defaults to `"Masked language modelling"`):
            What needs it: the subject of the message.
        base_model (`str`, *optional*):
            The checkpoint that is continued, whose embeddings are for the tokens of its own tokenizer.
    """
    if tokenizer.mask_token_id is None:
        source = f"the tokenizer {tokenizer.name_or_path!r}" if tokenizer.name_or_path else "this tokenizer"
        remedy = (
            "Pass `--tokenizer` with one that has, such as that of a BERT-family model, or leave it out to train one "
            "on the corpus."
        )
        if base_model:
            remedy = f"Continue a model of the BERT family, or train from scratch: {base_model!r} knows no such token."
        raise UserError(f"{purpose} needs a mask token, and {source} ({type(tokenizer).__name__}) has none. {remedy}")


def require_prompt_tokenizer(tokenizer: PreTrainedTokenizerBase, base_model: str | None = None) -> None:
    """Raise a [`UserError`] if a model cannot go on where a text of this tokenizer stops, or cannot end it.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Any tokenizer.
        base_model (`str`, *optional*):
            The checkpoint that is continued, whose embeddings are for the tokens of its own tokenizer.
    """
    source = f"The tokenizer {tokenizer.name_or_path!r}" if tokenizer.name_or_path else "This tokenizer"
    remedy = "Pass `--tokenizer` with that of a GPT-2 or Llama model, or leave it out to train one on the corpus."
    if base_model:
        remedy = f"Continue a model of the kind of GPT-2 or Llama instead of {base_model!r}, or train from scratch."
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"Causal language modelling learns where a text ends, and {source[0].lower()}{source[1:]} "
            f"({type(tokenizer).__name__}) has no `eos_token`. {remedy}"
        )
    backend = working_copy(tokenizer).backend_tokenizer
    bare, full = (backend.encode("a", add_special_tokens=special).ids for special in (False, True))
    if full[-1] != bare[-1]:
        raise UserError(
            f"{source} ({type(tokenizer).__name__}) ends every text with "
            f"{tokenizer.convert_ids_to_tokens(full[-1])!r}: a prompt would be over before the model goes on with it. "
            f"{remedy}"
        )


def _problem_with_hub(name: str, kwargs: dict) -> str:
    """Why a tokenizer cannot be had from the Hub and what to do, or "". Out of its reach, only the cache is asked."""
    offline = f"Download it elsewhere (`hf download {name} --local-dir FOLDER`) and pass the folder."
    try:
        validate_repo_id(name)
        if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set, and it is not in the cache ({constants.HF_HOME}). {offline}"
        # Asked first because it answers in seconds; loading without a connection tries again for more than a minute.
        HfApi().model_info(name, revision=kwargs.get("revision"), token=kwargs.get("token"), timeout=20)
    except HFValidationError:
        return "It is no valid Hub id either: check the name."
    except RepositoryNotFoundError:
        return "The Hub has no such model either: check the name, or log in with `hf auth login` if it is private."
    except HfHubHTTPError as error:
        return f"The Hub answered: {first_line(error)}."
    except (httpx.HTTPError, ConnectionError, OfflineModeIsEnabled) as error:
        kwargs["local_files_only"] = True
        reason = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
        return f"{reason}, and it is not in the cache ({constants.HF_HOME}). {offline}"
    return ""
