"""What a search chooses from: one module per candidate operation.

Each ties its supernet form to its lean form and cost, which are in ``lean/operations``.
"""
