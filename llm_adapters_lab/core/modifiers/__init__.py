"""Modifiers: masks, parts and low bits for the matrices of any adapter.

A modifier is chosen in the spec beside the adapter, e.g. `adapter: {type: series, sparse: {score: snip}}`. It is a
parametrisation (`torch.nn.utils.parametrize`) of each matrix of the adapter: the adapter computes with the masked or
quantised matrix, the optimiser updates the original one. Vectors and scalars are not modified.
"""
