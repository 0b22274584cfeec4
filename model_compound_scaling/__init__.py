"""Stage 1: compound scaling, and what all stages share.

networks, machine < checkpoints < runs < training, command_line < search: a room imports from those
left of it only.
"""
