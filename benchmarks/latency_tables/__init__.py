"""Tables of measured latencies that searches are budgeted by."""
