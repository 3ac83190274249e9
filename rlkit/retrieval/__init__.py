"""Hybrid retrieval: words, vectors and a graph of entities, fused (adqa, §2).

`hybrid.py` is the retriever; `dense.py` and `embed.py` search by vectors, `graph.py` walks entities, `queries.py`
rewrites, `fusion.py` merges, `rerank.py` orders, `heat.py` counts what is used. faiss, scikit-learn and networkx are
imported when an index is built or opened.
"""
