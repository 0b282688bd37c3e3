"""MLPerf Inference's scenarios by its LoadGen."""
