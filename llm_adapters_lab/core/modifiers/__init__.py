"""Modifiers: what stands between an adapter's matrices and their use, whatever the adapter.

A modifier is chosen in the spec beside the adapter, e.g. `adapter: {type: series, sparse: {score: snip}}`. It is a
parametrisation of torch on each of the adapter's matrices: the adapter reads the masked or quantised matrix where it
reads its own, the optimiser sees the plain one. Vectors and scalars stay as they are.
"""
