"""A pass over the corpus: a function of every sample, once, with the results kept on disk and read back by place.

[`CorpusPass`] goes through a source in its order, in any number of processes, and can be killed at any moment;
[`CorpusResults`] reads what it left: features, units of speech, cluster labels, memory banks.
"""

from .columns import PLACE
from .results import CorpusResults
from .run import CorpusPass, ResultRows, deal


__all__ = ["PLACE", "CorpusPass", "CorpusResults", "ResultRows", "deal"]
