"""Reading of records from files and the hub, and their conversion to comparisons: sources, formats, options.

The built-in synthetic data is here too. Tokens and tokenizers belong to `rmjax.data.tokens`.
"""
