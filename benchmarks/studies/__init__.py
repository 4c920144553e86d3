"""Studies whose outcome is a score: each writes one file of benchmarks/results, from public data.

sts: SimCSE training over seeds. retrieval: what mined hard negatives are worth. objectives: what whole objectives cost
beside InfoNCE.
"""
