"""Treatments: changed copies of a model or a task, in words and as code."""
