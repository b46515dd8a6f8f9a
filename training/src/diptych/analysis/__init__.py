"""Studies over several models: ablation, cross-validation, comparison, doubtful labels."""
