"""Which record is next: arithmetic, no I/O.

- `keys` what names one order: (length, seed, epoch, word) hashed to key words.
- `kernels` a keyed bijection on [0, N), forward and back.
- `blocks` an order of few open blocks at a time, for stores where every read is dear.
- `epoch` one data set's order in one epoch, behind the contract `Order`.
- `partition` what a rank owns of it, batch by batch.
- `cursor` where an epoch stands, as a small value to save.
- `random` a generator for each record.

Nothing here imports torch, and nothing imports numba until `kernels.warm` is called.
"""
