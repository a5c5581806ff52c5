"""The networks: AFT, MAE encoder and heads."""
