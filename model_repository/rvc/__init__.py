"""RVC voice conversion: our own inference, from files to streams. Importing this loads nothing heavy.

Read in this order: `chunks` (how a stream becomes fixed-length work), `engine` (what happens to a batch of it), then
the parts: `content`, `pitch` (with `rmvpe`, `pyin`), `retrieval`, `synthesizer` (with `prior`, `flow`, `excitation`,
`decoder`); `voice` and `checkpoint` (files, also hostile ones); `stream` (one whole stream in one process); `parity`
(the reference's pipeline). ``1/model.py`` serves it on Triton.
"""
