"""Data: records -> examples -> items of tokens -> batches.

`records` reads files, `template` makes prompts and completions of their columns, `encode` (with `chat`) makes tokens
and says which of them are learned, `dataset` holds a validation share out, `batches` orders, cuts and pads.
"""
