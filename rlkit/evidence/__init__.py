"""The evidence of a cited answer: the passages that retrieval showed (`passages.py`) and URLs in text (`urls.py`)."""
