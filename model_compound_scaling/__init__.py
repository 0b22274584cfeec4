"""Stage 1: compound scaling, and what all stages share. A room imports from those left of it only:
networks, machine < checkpoints < runs < training, command_line < search."""
