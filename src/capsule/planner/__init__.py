"""Pure: policy, host, program and survey make a plan; the one place that orders steps."""
