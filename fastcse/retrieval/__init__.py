"""Retrieval: a corpus of embeddings that is searched exactly or by FAISS, written through, saved, spread over ranks."""
