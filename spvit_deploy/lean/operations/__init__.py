"""What a block's attention can become: lean forms and costs, which need no search."""
