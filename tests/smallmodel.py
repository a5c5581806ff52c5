"""A model that trains in no time, as a preset's section."""

SMALL_MODEL = """
[model]
num_frames = 256
width = 16
depth = 1
num_heads = 2
mae_width = 8
mae_depth = 1
mae_num_heads = 2
"""
