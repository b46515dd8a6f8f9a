"""Programs that measure a served model and draw what they found."""
