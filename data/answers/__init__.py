"""Final answers: where a response states one, and which answers are the same.

- kinds.py: the kinds of answers; grader.py: verdicts, in processes that can be killed; votes.py, clusters.py.
- Where a response states its answer: extract.py has the order of the rules; boxes.py, statements.py (tags, hashes,
  phrases; phrases.py, sentences.py, rows.py), last_formula.py, last_number.py, pieces.py, thoughts.py.
- Which answers are the same: equivalence.py decides what it can with numbers.py, quantities.py, units.py, words.py and
  spelling.py; formula.py leaves the rest to math-verify.
- Other kinds: choice.py, texts.py (exact), own.py and own_grader.py (a custom function).
- Gold answers: gold.py, gold_texts.py.
"""
