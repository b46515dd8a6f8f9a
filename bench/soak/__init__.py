"""Mixed traffic while one fault after another is injected: is every answer right, every call accounted for,
and does anything leak? `python -m bench.soak --minutes 10`."""
