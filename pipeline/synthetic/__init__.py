"""The embedded corpus: deterministic talking mouths, made here and free of any download.

``articulation`` draws what a speaker's mouth does, ``voice`` and ``mouth`` render sound and pictures of the
very same movement, ``corpus`` mixes and writes them in the course's directory layout.
"""

from pipeline.synthetic.corpus import CorpusError, render_utterance, write_corpus

__all__ = ["CorpusError", "render_utterance", "write_corpus"]
