"""One batch, looked at: layers, findings, and which change removes them."""
