"""Mixed traffic while one fault after another is injected: is every answer right, every call accounted for,
and does anything leak? `python -m loadtest.soak_with_faults --minutes 10`."""
